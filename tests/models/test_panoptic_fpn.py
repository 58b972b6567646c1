"""Panoptic FPN itself: what its two heads learn from, the merge of their answers, extremes, arguments. Answers of the
reference are in tests/weights."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.merging import MergeSettings, merge
from kirie.models.file import load, save
from kirie.models.mask_rcnn import MaskRCNN
from kirie.models.panoptic_fpn import PanopticFPN
from kirie.results import Instances, PanopticMap, SemanticMap
from tests.models.contract import SMALL, build, equal, nothing, pictures, segments, things_and_stuff, total, truths

STREET = Classes(("road", "car", "sky", "person", "tree"), things=(False, True, False, True, False))
SIZE = (24, 40)


def labelled(model, ids, labels, crowd=False):
    ids = np.asarray(ids, np.int32)
    return PanopticMap(ids, segments(ids, labels, model.classes, crowd), model.classes)


# ---- what is learned


def test_losses_are_those_of_the_two_heads():
    model = build("panoptic_fpn", classes=STREET, semantic_weight=0.25, instance_weight=2.0)
    rng = np.random.default_rng(0)
    given = [things_and_stuff(rng, SIZE, STREET), things_and_stuff(rng, SIZE, STREET)]
    raw = model(pictures())
    torch.manual_seed(3)
    losses = model.loss(raw, given)
    objects, maps = [], []
    for truth in given:
        things = [s for s in truth.segments if STREET.names[s.label] in ("car", "person")]
        masks = Masks.from_dense(np.stack([truth.ids == s.id for s in things]))
        objects.append(Instances.from_masks(masks, [int(s.label == 3) for s in things], model.instance.classes))
        place = {0: 255} | {
            s.id: {"road": 1, "sky": 2, "tree": 3}.get(STREET.names[s.label], 0) for s in truth.segments
        }
        maps.append(np.vectorize(place.get)(truth.ids))
    torch.manual_seed(3)
    expected = {name: 2 * value for name, value in model.instance.loss(raw.instances, objects).items()}
    full = F.interpolate(raw.logits, scale_factor=4, mode="bilinear", align_corners=False)[..., :24, :40]
    semantic = F.cross_entropy(full, torch.from_numpy(np.stack(maps)).long(), ignore_index=255)
    expected["semantic"] = 0.25 * semantic
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


def test_void_teaches_the_semantic_head_nothing():
    model = build("panoptic_fpn", classes=3)
    losses = model.loss(model(pictures()), nothing(model))
    assert losses["semantic"] == 0 and losses["box"] == losses["mask"] == 0 < losses["objectness"]
    total(model, pictures(), nothing(model)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_crowd_is_no_object_but_its_pixels_are_things():
    model = build("panoptic_fpn", classes=3).eval()
    ids = np.ones(SIZE)
    one, crowd, stuff = labelled(model, ids, [1]), labelled(model, ids, [1], True), labelled(model, ids, [0])
    raw = model(pictures(1))
    torch.manual_seed(0)
    of_one, of_crowd, of_stuff = (model.loss(raw, [given]) for given in (one, crowd, stuff))
    assert of_one["mask"] > 0 == of_crowd["mask"] == of_stuff["mask"]
    assert of_one["semantic"] == of_crowd["semantic"] != of_stuff["semantic"]
    assert of_crowd["classification"] == 0 < of_stuff["classification"], "within a crowd nothing is background"


@pytest.mark.parametrize("size", [(24, 40), (17, 4000), (1, 9)])
def test_truths_at_their_extremes_are_learned_and_decoded(size):
    """No things, all void, crowds alone, segments of a pixel, hundreds of objects, very long pictures."""
    model = build("panoptic_fpn", classes=STREET)
    rng = np.random.default_rng(0)
    pixels = np.zeros(size)
    pixels.flat[: 5 * 4] = np.arange(5 * 4)[: pixels.size]
    batches = [
        [labelled(model, np.ones(size), [0]), labelled(model, np.full(size, 2), [0, 2])],
        nothing(model, 2, size),
        [things_and_stuff(rng, size, STREET, crowd=True)] * 2,
        [labelled(model, pixels, [label % 5 for label in range(20)]), nothing(model, 1, size)[0]],
        [things_and_stuff(rng, size, STREET, count=300), labelled(model, np.ones(size), [3])],
    ]
    for given in batches:
        model.zero_grad()
        losses = model.train().loss(model(pictures(size=size)), given)
        torch.stack(list(losses.values())).sum().backward()
        assert all(value.isfinite() for value in losses.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    found = model.eval().decode(model(pictures(size=size)), [size, (33, 7)])
    assert [each.size for each in found] == [size, (33, 7)]


def test_it_learns_a_picture_by_heart():
    """Two cars before road and sky, found again with their outlines."""
    torch.manual_seed(0)
    wide = {"encoder": "resnet10t", "channels": 32, "box_width": 64, "mask_convs": 2, "mask_width": 32, "norm": True}
    model = build("panoptic_fpn", classes=STREET, **wide).train()
    ids = np.ones((64, 96), np.int32)
    ids[:20] = 2
    ids[8:40, 10:40], ids[24:60, 50:90] = 3, 4
    truth = labelled(model, ids, [0, 2, 1, 1])
    image = torch.from_numpy(np.stack([ids > 2, ids == 2, ids == 1])[None].astype(np.float32))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        total(model, image, [truth]).backward()
        optimiser.step()
    with torch.no_grad():
        (found,) = model.eval().merging(score=0.5, stuff_area=64).decode(model(image), [(64, 96)])
    assert len(found.segments) == 4
    for segment in truth.segments:
        inside = truth.ids == segment.id
        (nearest,) = (s for s in found.segments if ((found.ids == s.id) & inside).sum() * 2 > segment.area)
        own = found.ids == nearest.id
        assert nearest.label == segment.label
        assert (own & inside).sum() / (own | inside).sum() > 0.75


# ---- what is answered


@torch.no_grad()
def test_the_answer_is_the_merge_of_both_heads_at_the_size_asked_for():
    model = build("panoptic_fpn", classes=STREET).eval()
    raw, sizes = model(pictures(size=(50, 70))), [(50, 70), (90, 61)]
    found = model.decode(raw, sizes)
    objects = model.instance.decode(raw.instances, sizes)
    full = F.interpolate(raw.logits, scale_factor=4, mode="bilinear", align_corners=False)[..., :50, :70]
    classes, _, joint = model.split_classes
    for index, size in enumerate(sizes):
        labels = F.interpolate(full, size, mode="bilinear", align_corners=False)[index].argmax(0)
        expected = merge(SemanticMap(labels.numpy().astype(np.uint8), classes), objects[index], joint, model.settings)
        assert len(expected.segments) > 3 and equal(found[index], expected)


@torch.no_grad()
def test_many_classes_of_stuff_are_compared_some_at_a_time():
    many = Classes(tuple(f"c{i}" for i in range(300)), things=(True,) + (False,) * 299)
    model = build("panoptic_fpn", classes=many).eval()
    raw = model(pictures(1))
    labels = model.semantic_labels(raw.logits, raw.instances.seen[0], (31, 37))
    full = F.interpolate(raw.logits, scale_factor=4, mode="bilinear", align_corners=False)[..., :24, :40]
    expected = F.interpolate(full, (31, 37), mode="bilinear", align_corners=False)[0].argmax(0)
    assert labels.dtype == np.int32 and len(np.unique(labels)) > 8
    np.testing.assert_array_equal(labels, expected)


@torch.no_grad()
def test_masks_are_made_of_objects_that_can_enter_the_map_alone(monkeypatch):
    model = build("panoptic_fpn", classes=STREET).eval()
    raw = model(pictures(1, size=(64, 96)))
    scores = model.instance.decode(raw.instances, [(64, 96)])[0].scores
    least, made = float(np.median(scores)), []
    whole = MaskRCNN.maps
    monkeypatch.setattr(MaskRCNN, "maps", lambda self, raw, own: made.append(len(own[0])) or whole(self, raw, own))
    found = model.merging(score=least, overlap=1.0).decode(raw, [(64, 96)])[0]
    assert sum(made) == (scores >= least).sum() < len(scores)
    assert all(s.score >= least for s in found.segments)


@torch.no_grad()
def test_limits_of_the_merge_can_be_changed_and_those_of_the_model_stay(tmp_path):
    model = PanopticFPN(3, STREET, **SMALL["panoptic_fpn"], score=0.25, overlap=0.75, stuff_area=7).eval()
    assert model.settings == MergeSettings(0.25, 0.75, 7)
    other = model.merging(score=0.5)
    assert other.settings == MergeSettings(0.5, 0.75, 7) and model.settings == MergeSettings(0.25, 0.75, 7)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert load(save(model, tmp_path / "model.safetensors")).settings == model.settings
    with pytest.raises(KirieError, match="The score of a merge is a number from 0 to 1"):
        model.merging(score=2)


@torch.no_grad()
def test_its_own_mean_and_deviation_count_and_are_kept_in_the_file(tmp_path):
    model = build("panoptic_fpn", classes=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    before = model(pictures())
    expected = model.instance.pyramid((pictures() - model.mean) / model.std)
    torch.testing.assert_close(before.instances.maps[0], expected[0])
    model.mean.fill_(0.4)
    found = load(save(model, tmp_path / "model.safetensors"))
    assert torch.equal(found.mean, model.mean)
    assert torch.equal(found(pictures()).logits, model(pictures()).logits)
    assert not torch.equal(before.logits, model(pictures()).logits)
    usual = PanopticFPN(3, 3, **SMALL["panoptic_fpn"])
    assert usual.mean.flatten().tolist() == pytest.approx(usual.instance.encoder.mean)


def test_answers_within_autocast_are_those_without():
    model = build("panoptic_fpn", classes=3).eval()
    raw = model(pictures(1, size=(64, 96)))
    (expected,) = model.decode(raw, [(64, 96)])
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = model.decode(raw, [(64, 96)])
        assert len(model.decode(model(pictures(1, size=(64, 96))), [(64, 96)])) == 1
    assert equal(found, expected)


def test_models_cast_to_half_precision_answer():
    model = build("panoptic_fpn", classes=3).eval().to(torch.bfloat16)
    with torch.no_grad():
        assert model.decode(model(pictures(1).bfloat16()), [SIZE])[0].segments


@torch.no_grad()
def test_outputs_that_are_no_numbers_and_missing_sizes_are_errors():
    model = build("panoptic_fpn").eval()
    raw = model(pictures())
    with pytest.raises(KirieError, match="one size per picture, got 1 for 2"):
        model.decode(raw, [SIZE])
    model.semantic.predictor.bias[0] = torch.nan
    with pytest.raises(KirieError, match="outputs are NaN"):
        model.decode(model(pictures()), [SIZE] * 2)
    image = pictures(1)
    image[0, 0, 3, 3] = torch.nan
    with pytest.raises(KirieError, match="outputs are NaN"):
        build("panoptic_fpn").eval().decode(model(image), [SIZE])


# ---- classes, parts, arguments


def test_a_number_of_classes_is_one_of_stuff_and_things():
    assert build("panoptic_fpn", classes=1).classes.names == ("background", "object")
    model = build("panoptic_fpn", classes=4)
    assert model.classes.names == ("background", "class 1", "class 2", "class 3")
    assert model.classes.things == (False, True, True, True)
    assert len(model.instance.classes) == 3 and model.semantic.predictor.out_channels == 2


def test_one_encoder_and_one_pyramid_serve_both_heads():
    model = build("panoptic_fpn", classes=STREET)
    objects = MaskRCNN(3, 2, **{k: v for k, v in SMALL["panoptic_fpn"].items() if k != "width"})
    assert {n for n in model.state_dict() if n.startswith("instance.")} == {
        f"instance.{n}" for n in objects.state_dict()
    }
    levels = model.levels()
    assert len(levels) == len(objects.levels())
    assert model.semantic in levels[-1] and model.instance.fpn in levels[-1]
    learned = {id(p) for level in levels for part in level for p in part.parameters()}
    assert learned == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be a whole number"),
        ({"semantic_weight": 0}, "semantic_weight and instance_weight must be one number above 0"),
        ({"instance_weight": "1"}, "semantic_weight and instance_weight must be"),
        ({"score": 2}, "The score of a merge is a number from 0 to 1"),
        ({"overlap": None}, "The overlap of a merge is a number from 0 to 1"),
        ({"stuff_area": 0.5}, "stuff_area is a whole number"),
        ({"stuff_aera": 5}, "A Panoptic FPN has no argument 'stuff_aera'; of Mask R-CNN's: encoder, .*mean, std"),
        ({"shown_threshold": 0.5}, "no argument 'shown_threshold'"),
        ({"channels": 0}, "channels must be a whole number"),
        ({"anchor_sizes": (8, 16)}, "anchor_sizes must be 5 sizes"),
        ({"classes": Classes(("a", "b"))}, "of the 2 classes 0 are things"),
        ({"encoder": "resnet5000"}, "timm has no encoder"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        PanopticFPN(3, **{"classes": STREET, **SMALL["panoptic_fpn"], **arguments})


def test_truths_are_of_the_size_of_the_pictures_and_of_the_models_classes():
    model = build("panoptic_fpn", classes=3)
    with pytest.raises(KirieError, match=r"have the size \(25, 40\), the pictures \(24, 40\)"):
        model.loss(model(pictures(1)), truths(model, 1, (25, 40)))
    with pytest.raises(KirieError, match="The truth has 5 classes, the model 3"):
        model.loss(model(pictures(1)), [things_and_stuff(np.random.default_rng(0), SIZE, STREET)])


def test_other_limits_of_the_merge_are_kept_in_the_file(tmp_path):
    model = build("panoptic_fpn")
    before = dict(model.arguments)
    other = model.merging(overlap=0.9, stuff_area=7)
    assert model.arguments == before
    other.settings = MergeSettings(score=0.25, overlap=0.9, stuff_area=7)
    assert load(save(other, tmp_path / "m.safetensors")).settings == MergeSettings(0.25, 0.9, 7)
