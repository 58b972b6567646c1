"""Torchvision's own Mask R-CNNs beside what `kirie import` makes of their state dicts: answers, losses, gradients."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from kirie.class_lists import COCO
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models import mask_rcnn
from kirie.models.contract import InputFacts
from kirie.results import Instances
from kirie.weights.load import import_checkpoint
from tests.weights.parity import through_file

SIZE = (131, 190)  # neither a multiple of 32: both pad


def network(name, classes=91, **options):
    """Torchvision's network with random weights whose answers differ from place to place."""
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes, **options)
    for part, buffer in model.named_buffers():
        if part.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
        if part.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if part.endswith("bias"):
                parameter.normal_(0, 0.02)
    model.transform.min_size, model.transform.max_size = (min(SIZE),), 10**6  # no other size than the picture's
    model.eval()
    predictor = model.roi_heads.box_predictor
    for layer, spread in (
        (model.rpn.head.cls_logits, 2), (model.rpn.head.bbox_pred, 0.5), (predictor.cls_score, 2),
        (predictor.bbox_pred, 1), (model.roi_heads.mask_predictor.mask_fcn_logits, 2),
    ):  # fmt: skip
        adapt(model, layer, spread)
    return model


@torch.no_grad()
def adapt(model, layer, spread):
    """Gives the outputs of a layer that deviation, so that its answers are neither all alike nor all sure."""
    kept = []
    handle = layer.register_forward_hook(lambda _, given, output: kept.append(output.std()))
    model([picture()[0]])
    handle.remove()
    layer.weight.mul_(spread / kept[0])


def picture(size=SIZE):
    rough = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(rough, size, mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module", params=["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def pair(request, tmp_path_factory):
    """Theirs, ours, and how ours was translated."""
    theirs = network(request.param)
    ours, translation = through_file(theirs.state_dict(), tmp_path_factory.mktemp("tv") / "mask_rcnn.pth")
    return theirs, ours, translation


def test_the_form_is_told_by_names_and_shapes(pair):
    theirs, ours, translation = pair
    second = hasattr(theirs.roi_heads.box_head, "5")
    expected = {"norm": second, "box_convs": 4 * second, "box_layers": 2 - second, "proposal_convs": 1 + second}
    assert (expected | {"encoder": "resnet50", "flavour": "torchvision"}).items() <= ours.arguments.items()
    assert ours.classes == COCO
    assert ours.inputs == InputFacts(short_side=800, long_side=1333)
    assert translation.assumed.keys() == {"classes", "anchor_sizes", "anchor_ratios"}
    # Boxes and masks of the background and of the ten numbers that are no category have no effect.
    without_effect = 11 * (4 * 1024 + 4 + 256 + 1)
    count = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert count[0] == count[1] - without_effect


def paired(boxes, labels, scores, expected):
    """For each box that is expected, the place of its own among those found: of its label, and nearly its score.

    Those of equal scores come in any order.
    """
    out = []
    rest = np.arange(len(boxes))
    for box, label, score in zip(*(expected[k].numpy() for k in ("boxes", "labels", "scores")), strict=True):
        near = np.abs(boxes[rest] - box).max(1) + 1e4 * np.abs(scores[rest] - score) + 1e4 * (labels[rest] != label)
        assert near.min() < 1, "a box that is expected was not found"
        out.append(rest[near.argmin()])
        rest = np.delete(rest, near.argmin())
    return np.array(out)


def only(expected, chosen):
    return {key: value[torch.as_tensor(chosen)] for key, value in expected.items()}


@torch.no_grad()
def test_proposals_are_torchvisions(pair):
    theirs, ours, _ = pair
    kept = []
    handle = theirs.rpn.register_forward_hook(lambda _, given, output: kept.append(output[0][0]))
    theirs([picture()[0]])
    handle.remove()
    asked = []
    select = mask_rcnn.select

    def spy(*given, **named):
        asked.append(select(*given, **named)[0])
        return asked[-1], None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_rcnn, "select", spy)
        ours.decode(ours(picture()), [SIZE])
    assert len(kept[0]) == len(asked[0]) > 300
    away = (asked[0][:, None] - kept[0]).abs().amax(2)  # equal logits come in any order
    assert away.amin(0).max() < 2e-3 and away.amin(1).max() < 2e-3
    assert (away.diagonal() < 2e-3).float().mean() > 0.98


@torch.no_grad()
def test_objects_are_torchvisions(pair):
    theirs, ours, _ = pair
    theirs.roi_heads.detections_per_img = ours.max_detections = 10**4
    theirs.roi_heads.score_thresh = ours.score_threshold = 0.15
    expected = theirs([picture()[0]])[0]
    found = ours.decode(ours(picture()), [SIZE])[0]
    theirs.roi_heads.detections_per_img = ours.max_detections = 100
    theirs.roi_heads.score_thresh = ours.score_threshold = 0.05
    expected = only(expected, np.isin(expected["labels"], COCO.ids))  # random weights find what is no category, too
    assert len(expected["boxes"]) == len(found) > 20 and len(np.unique(found.labels)) > 2
    order = paired(found.boxes, np.array(COCO.ids)[found.labels], found.scores, expected)
    assert (order == np.arange(len(order))).mean() > 0.9
    np.testing.assert_allclose(found.scores[order], expected["scores"], atol=1e-5)
    np.testing.assert_allclose(found.boxes[order], expected["boxes"], atol=2e-2)
    equal_masks(found.masks[order], expected["masks"])


def equal_masks(found, expected):
    masks = expected[:, 0].numpy() > 0.5
    assert 0.2 < np.mean([mask.any() for mask in masks])
    wrong = [(one ^ other).sum() for one, other in zip(found, masks, strict=True)]
    assert np.mean(np.array(wrong) == 0) > 0.9
    assert all(count <= 0.01 * mask.sum() + 2 for count, mask in zip(wrong, masks, strict=True))


@torch.no_grad()
def test_results_at_another_size_are_torchvisions(pair):
    theirs, ours, _ = pair
    kept = []
    handle = theirs.transform.register_forward_hook(lambda _, given, output: kept.append(output[0]))
    theirs.transform.min_size = (151,)
    expected = theirs([picture()[0]])[0]
    theirs.transform.min_size = (min(SIZE),)
    handle.remove()
    size = kept[0].image_sizes[0]
    small = kept[0].tensors[:, :, : size[0], : size[1]] * ours.std + ours.mean
    found = ours.decode(ours(small), [SIZE])[0]
    expected = only(expected, np.isin(expected["labels"], COCO.ids))
    expected = only(expected, np.arange(min(10, len(expected["boxes"]))))
    assert len(expected["boxes"]) == 10
    order = paired(found.boxes, np.array(COCO.ids)[found.labels], found.scores, expected)
    np.testing.assert_allclose(found.boxes[order], expected["boxes"], atol=2e-2)
    equal_masks(found.masks[order], expected["masks"])


# ---- losses


def rectangles(seed=0, count=6):
    """Truths of ours and targets of theirs: the same ellipses."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = []
    for _ in range(count):
        cy, cx, ry, rx = rng.uniform([20, 20, 6, 6], [SIZE[0] - 20, SIZE[1] - 20, 40, 60])
        masks.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1)
    masks[0][:] = False
    masks[0][50:53, 70:73] = True  # of three pixels
    labels = rng.integers(0, 80, count)
    truth = Instances.from_masks(Masks.from_dense(np.stack(masks)), labels, COCO)
    target = {
        "boxes": torch.from_numpy(truth.boxes),
        "labels": torch.tensor(np.array(COCO.ids)[labels]),
        "masks": torch.from_numpy(np.stack(masks).astype(np.uint8)),
    }
    return truth, target


def all_of_it(monkeypatch, theirs, ours):
    """Everything learns, on both sides, so that nothing depends on chance."""
    monkeypatch.setattr(ours, "regions", 10**6)
    losses = mask_rcnn.proposal_losses
    monkeypatch.setattr(mask_rcnn, "proposal_losses", lambda *a, **k: losses(*a, **k, count=10**6))
    monkeypatch.setitem(theirs.rpn._post_nms_top_n, "training", 100)
    monkeypatch.setattr(ours, "flavour", replace(ours.flavour, learning_proposals=100))
    for sampler in (theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler):
        monkeypatch.setattr(sampler, "batch_size_per_image", 10**6)


def test_losses_and_gradients_are_torchvisions(pair, monkeypatch):
    theirs, ours, _ = pair
    all_of_it(monkeypatch, theirs, ours)
    truths, targets = zip(*(rectangles(seed) for seed in (0, 1)), strict=True)
    images = torch.cat([picture(), picture().flip(3)])
    monkeypatch.setattr(theirs.transform, "_skip_resize", True)
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    expected = theirs(list(images), list(targets))
    ours.zero_grad()
    found = ours.eval().loss(ours(images), truths)
    names = {
        "objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "classification": "loss_classifier",
        "box": "loss_box_reg", "mask": "loss_mask",
    }  # fmt: skip
    assert found.keys() == names.keys()
    for name, other in names.items():
        torch.testing.assert_close(found[name], expected[other], rtol=2e-3, atol=1e-6, msg=name)
    torch.stack(list(found.values())).sum().backward()
    torch.stack(list(expected.values())).sum().backward()
    theirs.eval()
    heads = ours.mask_head, theirs.roi_heads.mask_predictor
    same = {
        "stem": (ours.encoder.body.conv1.weight, theirs.backbone.body.conv1.weight),
        "proposals": (ours.proposals.codes.weight, theirs.rpn.head.bbox_pred.weight),
        "enlarge": (heads[0].enlarge.weight, heads[1].conv5_mask.weight),
        "predictor": (heads[0].predictor.weight, heads[1].mask_fcn_logits.weight[list(COCO.ids)]),
    }
    grads = {
        "stem": theirs.backbone.body.conv1.weight.grad,
        "proposals": theirs.rpn.head.bbox_pred.weight.grad,
        "enlarge": heads[1].conv5_mask.weight.grad,
        "predictor": heads[1].mask_fcn_logits.weight.grad[list(COCO.ids)],
    }
    for name, (own, _) in same.items():
        largest = grads[name].abs().max()
        assert largest > 0
        torch.testing.assert_close(own.grad / largest, grads[name] / largest, atol=1e-2, rtol=0, msg=name)


# ---- other forms


def small(classes=4, norm=None):
    """A network of torchvision on a ResNet-18, with its frozen or another batch norm."""
    norm = norm or FrozenBatchNorm2d
    torch.manual_seed(0)
    body = detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm)
    model = detection.MaskRCNN(body, classes).eval()
    first = model.backbone.body.bn1
    with torch.no_grad():  # so that what is added to the variance tells
        first.running_var.uniform_(5e-6, 2e-5)
        first.weight.fill_(0.005)
    model.transform.min_size, model.transform.max_size = (64,), 10**6
    adapt(model, model.rpn.head.cls_logits, 2)
    adapt(model, model.roi_heads.box_predictor.cls_score, 2)
    return model


@torch.no_grad()
def same_answers(theirs, ours):
    image = picture((64, 96))
    expected, found = theirs([image[0]])[0], ours.decode(ours(image), [(64, 96)])[0]
    assert len(found) == len(expected["boxes"]) > 0
    order = paired(found.boxes, found.labels + 1, found.scores, expected)
    np.testing.assert_allclose(found.boxes[order], expected["boxes"], atol=2e-2)


@pytest.mark.parametrize("classes", [2, 4])
def test_other_encoders_and_class_counts(classes, tmp_path):
    theirs = small(classes)
    ours, translation = through_file(theirs.state_dict(), tmp_path / "mine.pth")
    assert len(ours.classes) == classes - 1 and ours.arguments["spare_logits"] == 0
    assert translation.arguments["encoder"] == "resnet18"
    assert translation.arguments["encoder_options"] == {"frozen_norm": True}
    assert "encoder_options" in translation.assumed
    same_answers(theirs, ours)


def test_weights_that_learned_without_an_addition_to_the_variance(tmp_path):
    theirs = small()
    for module in theirs.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    changes = ["encoder_options={frozen_norm: true, norm_eps: 0.0}", "classes=[a, b, c]"]
    ours, translation = import_checkpoint(tmp_path / "mine.pth", changes=changes)
    assert ours.classes.names == ("a", "b", "c") and "encoder_options" not in translation.assumed
    same_answers(theirs, ours)


def test_batch_norm_that_learned_is_not_frozen(tmp_path):
    ours, translation = through_file(small(norm=nn.BatchNorm2d).state_dict(), tmp_path / "mine.pth")
    assert ours.arguments["encoder_options"] is None and "encoder_options" not in translation.assumed


def old_names(state):
    """The names of torchvision before version 0.13."""
    rows = (
        (r"(backbone\.fpn\.\w+\.\d)\.0\.", r"\1."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}."),
    )
    out = {}
    for name, tensor in state.items():
        for pattern, place in rows:
            name = re.sub(pattern, place, name)
        out[name] = tensor
    return out


def test_files_of_old_versions_are_the_same(tmp_path):
    state = small().state_dict()
    new, _ = through_file(state, tmp_path / "new.pth")
    old, _ = through_file(old_names(state), tmp_path / "old.pth")
    assert set(old_names(state)) != set(state)
    expected = new.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in old.state_dict().items())


def without(part):
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("cls_score"), "lacks roi_heads.box_predictor.cls_score.weight"),
        (without("fc6"), r"unknown \['box_head\.layers\.1"),
        (without("inner_blocks.1"), r"missing \['fpn\.laterals\.1"),
        (without("layer3.1"), "blocks per stage"),
        (lambda s: s | old_names(s), "before torchvision 0.13 and of after"),
        (lambda s: s | {"roi_heads.box_head.3.weight": torch.zeros(2, 2)}, "unknown|missing|no entry"),
        (lambda s: s | {"rpn.mine": torch.zeros(1)}, "no entry 'rpn.mine'"),
        (lambda s: s | {"roi_heads.mask_predictor.mask_fcn_logits.bias": torch.zeros(7)}, "of another shape"),
        (lambda s: s | {"roi_heads.mask_predictor.mask_fcn_logits.bias": 1.0}, "no entry 'roi_heads.mask_predictor"),
        (lambda s: s | {"roi_heads.box_predictor.cls_score.weight": torch.zeros(1, 1024)}, "background alone"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, tmp_path):
    torch.save(change(small().state_dict()), tmp_path / "checkpoint.pth")
    with pytest.raises(KirieError, match=message):
        import_checkpoint(tmp_path / "checkpoint.pth")
