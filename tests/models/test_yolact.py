"""YOLACT: its losses against plain arithmetic on dense arrays, its parts against torchvision, and what it must bear."""

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.models.file import load, save
from kirie.models.parts import priors as parts
from kirie.models.parts import prototypes as prototype_parts
from kirie.models.parts.pasting import on_cells
from kirie.models.parts.prototypes import PictureTruth
from kirie.models.yolact import YOLACT
from kirie.results import Instances, PanopticMap

CLASSES = Classes(("red", "green", "blue"))
SMALL = {"encoder": "resnet10t", "channels": 16, "prototypes": 8}


def build(classes=CLASSES, **options):
    torch.manual_seed(0)
    return YOLACT(3, classes, **SMALL | options)


def squares(size, count, side=None, seed=0, crowd=None):
    """A truth of `count` squares, of random sides where none is given."""
    rng = np.random.default_rng(seed)
    crops = []
    for _ in range(count):
        own = side or int(rng.integers(4, max(min(size) // 2, 5)))
        height, width = min(own, size[0]), min(own, size[1])
        top, left = int(rng.integers(0, size[0] - height + 1)), int(rng.integers(0, size[1] - width + 1))
        crops.append(Crop(top, left, np.ones((height, width), bool)))
    masks = Masks.from_crops(crops, size)
    return Instances.from_masks(masks, rng.integers(0, len(CLASSES), count), CLASSES, crowd=crowd)


def pictures(count, size, seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def painted(size, truths):
    """Black pictures (B, 3, H, W) in which each object is a square of its class's colour."""
    images = torch.zeros(len(truths), 3, *size)
    for image, truth in zip(images, truths, strict=True):
        for crop, label in zip(truth.masks.crops(), truth.labels, strict=True):
            height, width = crop.bits.shape
            image[:, crop.top : crop.top + height, crop.left : crop.left + width] = 0
            image[label, crop.top : crop.top + height, crop.left : crop.left + width] = 1
    return images


def some_boxes(count, seed=0):
    low = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 0.8
    return torch.cat(
        [low, low + 0.02 + 0.3 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed + 1))], 1
    )


# ---- parts


def test_codes_are_those_of_torchvision():
    priors = parts.grid_priors((4, 5), (0.25, 0.2), torch.tensor([[0.2, 0.3], [0.5, 0.1]]))
    assert priors.shape == (40, 4)
    torch.testing.assert_close(priors[2 * 7 + 1], torch.tensor([0.5, 0.375, 0.5, 0.1]))  # row 1, column 2
    boxes = some_boxes(40)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    codes = coder.encode([boxes], [parts.corners(priors)])[0]
    torch.testing.assert_close(parts.coded(boxes, priors), codes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts.decoded(codes, priors), boxes, atol=1e-5, rtol=1e-4)
    assert parts.decoded(torch.full((40, 4), 1e9), priors).isfinite().all()


def test_overlaps_are_those_of_torchvision():
    a, b = some_boxes(30), some_boxes(20, 5)
    torch.testing.assert_close(parts.overlaps(a, b), torchvision.ops.box_iou(a, b))
    shares = parts.overlaps(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), of_second=True)
    assert shares.tolist() == [[0.5]]
    assert parts.overlaps(torch.zeros(2, 4), torch.zeros(3, 4)).tolist() == [[0.0] * 3] * 2


def test_priors_are_matched_as_by_torchvision_but_for_the_best_of_each_truth():
    priors = parts.grid_priors((24, 24), (1 / 24, 1 / 24), torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.4, 0.4]]))
    priors += 0.01 * torch.rand(priors.shape, generator=torch.Generator().manual_seed(0))  # so that none are alike
    boxes = some_boxes(150)  # more than are compared at once
    table = torchvision.ops.box_iou(boxes, parts.corners(priors))
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=False)(table)
    found = parts.matched(priors, boxes, torch.zeros(0, 4))
    changed = (found != expected).nonzero()[:, 0]
    assert set(found[found >= 0].tolist()) == set(range(150)), "no truth goes without"
    assert len(changed) <= 150 and {parts.BACKGROUND, parts.NEUTRAL} <= set(found.tolist())
    left, own = table.clone(), expected.clone()
    for _ in range(150):  # the highest IoU of all that is left, and then neither its truth nor its prior
        row, prior = divmod(int(left.argmax()), len(priors))
        own[prior] = row
        left[row], left[:, prior] = -1, -1
    assert torch.equal(found, own)
    crowd = torch.tensor([[0.0, 0.0, 0.5, 1.0]])
    with_crowd = parts.matched(priors, boxes, crowd)
    inside = parts.overlaps(crowd, parts.corners(priors), of_second=True)[0] > 0.7
    assert torch.equal(with_crowd[~inside], found[~inside])
    assert not (with_crowd[inside] == parts.BACKGROUND).any() and (found[inside] == parts.BACKGROUND).any()


def test_truths_of_one_place_get_priors_of_their_own():
    priors = parts.grid_priors((8, 8), (1 / 8, 1 / 8), torch.tensor([[0.2, 0.2]]))
    boxes = torch.tensor([[0.40, 0.40, 0.42, 0.42]]).repeat(4, 1)  # too small for an IoU of 0.5, and in four priors
    found = parts.matched(priors, boxes, torch.zeros(0, 4))
    assert sorted(found[found >= 0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("at_once", [parts._PAIRS, 1000, 1])
def test_fast_nms_is_its_definition(monkeypatch, at_once):
    monkeypatch.setattr(parts, "_PAIRS", at_once)
    generator = torch.Generator().manual_seed(2)
    boxes, scores = some_boxes(60, 3), torch.rand(60, 4, generator=generator)
    rows, labels, kept = parts.fast_nms(boxes, scores, threshold=0.3, candidates=25, most=30)
    table = torchvision.ops.box_iou(boxes, boxes)
    expected = []
    for label in range(4):
        order = scores[:, label].argsort(descending=True)[:25].tolist()
        expected += [
            (float(scores[row, label]), row, label)
            for place, row in enumerate(order)
            if all(table[row, better] <= 0.3 for better in order[:place])
        ]
    expected = sorted(expected, reverse=True)[:30]
    assert list(zip(kept.tolist(), rows.tolist(), labels.tolist(), strict=True)) == expected
    nothing = parts.fast_nms(boxes[:0], scores[:0], threshold=0.5, candidates=25, most=30)
    assert [len(part) for part in nothing] == [0, 0, 0]


def test_asking_for_very_many_objects_costs_what_there_is():
    boxes, scores = some_boxes(40, 1), torch.rand(40, 80)
    most = parts.fast_nms(boxes, scores, threshold=0.5, candidates=10**6, most=10**6)
    enough = parts.fast_nms(boxes, scores, threshold=0.5, candidates=40, most=40 * 80)
    assert all(torch.equal(one, other) for one, other in zip(most, enough, strict=True))


def test_the_hardest_background_is_three_times_the_positives_of_a_picture():
    logits = torch.zeros(2, 50, 3)
    logits[..., 0] = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    positive = torch.zeros(2, 50, dtype=torch.bool)
    positive[0, :4] = True
    background = ~positive
    background[0, 10:20] = False  # neutral
    chosen = parts.hardest(logits, positive, background)
    assert chosen.sum(1).tolist() == [12, 3] and not (chosen & ~background).any()
    for picture in range(2):
        assert (
            logits[picture, chosen[picture], 0].max()
            <= logits[picture, background[picture] & ~chosen[picture], 0].min()
        )


def test_a_mask_on_cells_is_where_it_covers_more_than_half_and_never_nothing():
    truth = squares((64, 64), 20, seed=4)
    dense = torch.from_numpy(truth.masks.dense()).float()
    expected = F.avg_pool2d(dense[:, None], 4)[:, 0] > 0.5
    assert np.array_equal(on_cells(truth.masks, (16, 16)), expected.numpy())
    tiny = Masks.from_crops([Crop(30, 33, np.ones((1, 2), bool)), Crop(0, 0, np.zeros((3, 3), bool))], (64, 64))
    assert np.argwhere(on_cells(tiny, (16, 16))).tolist() == [[0, 7, 8]]


# ---- losses


def dense_loss(model, raw, truths):
    """The four losses from their definitions, on whole arrays, for truths without crowds of at least a cell."""
    height, width = truths[0].size
    h, w = raw.prototypes.shape[2:]
    cell = [4, 4] if model.input_size is None else [model.input_size / h, model.input_size / w]
    seen = raw.seen[0].tolist()
    covered = torch.tensor([seen[1] / cell[1], seen[0] / cell[0]] * 2)
    sums, count = dict.fromkeys(("classification", "box", "mask", "semantic"), 0.0), 0
    for index, truth in enumerate(truths):
        boxes = torch.from_numpy(truth.boxes) / torch.tensor([width, height, width, height])
        rows = parts.matched(raw.priors[index], boxes, torch.zeros(0, 4))
        positive = (rows >= 0).nonzero()[:, 0]
        count += len(positive)
        logits = raw.logits[index]
        background = (rows == parts.BACKGROUND).nonzero()[:, 0]
        hard = background[logits[background].softmax(1)[:, 0].argsort()[: 3 * max(len(positive), 1)]]
        labels = torch.from_numpy(truth.labels)
        sums["classification"] += F.cross_entropy(logits[hard], torch.zeros(len(hard)).long(), reduction="sum")
        scaled = F.pad(torch.from_numpy(truth.masks.dense()).float(), (0, 1000, 0, 1000))
        frame = [round(height * h / float(covered[1])), round(width * w / float(covered[0]))]
        cells = F.adaptive_avg_pool2d(scaled[:, : frame[0], : frame[1]], (h, w)) > 0.5
        for prior in positive.tolist():
            row = rows[prior]
            sums["classification"] += F.cross_entropy(logits[prior], labels[row] + 1)
            goal = parts.coded(boxes[row][None], raw.priors[index, prior][None])[0]
            sums["box"] += 1.5 * F.smooth_l1_loss(raw.codes[index, prior], goal, reduction="sum")
            x1, y1, x2, y2 = (boxes[row] * covered).tolist()
            probabilities = torch.einsum("m,mhw->hw", raw.coefficients[index, prior], raw.prototypes[index]).sigmoid()
            inside = torch.zeros(h, w)
            inside[
                int(np.ceil(max(y1 - 1, 0))) : int(np.ceil(y2 + 1)), int(np.ceil(max(x1 - 1, 0))) : int(np.ceil(x2 + 1))
            ] = 1
            error = F.binary_cross_entropy(probabilities * inside, cells[row].float(), reduction="sum")
            sums["mask"] += 6.125 * error / ((x2 - x1) * (y2 - y1))
        logits = model.semantic(raw.finest)[index]
        target = torch.zeros_like(logits)
        coarse = F.adaptive_avg_pool2d(scaled[:, : frame[0], : frame[1]], logits.shape[1:]) > 0.5
        for row, label in enumerate(truth.labels):
            target[label] = torch.maximum(target[label], coarse[row].float())
        sums["semantic"] += (
            F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / logits[0].numel() / len(truths)
        )
    return {name: float(value) / (1 if name == "semantic" else max(count, 1)) for name, value in sums.items()}


@pytest.mark.parametrize(
    ("size", "options"),
    [((96, 128), {}), ((90, 101), {}), ((96, 96), {"input_size": 192}), ((96, 96), {"input_size": 100})],
)
@torch.no_grad()
def test_losses_are_their_definitions(size, options):
    model = build(**options).eval()
    truths = [squares(size, 3, side=32, seed=1), squares(size, 0), squares(size, 2, side=24, seed=2)]
    raw = model(pictures(3, size))
    found = {name: float(value) for name, value in model.loss(raw, truths).items()}
    assert found == pytest.approx(dense_loss(model, raw, truths), rel=1e-3)
    assert min(found.values()) > 0


def test_a_crowd_teaches_nothing_where_it_lies():
    model = build()
    raw = model(pictures(1, (64, 64)))
    raw.logits.retain_grad()
    half = Masks.from_crops([Crop(0, 0, np.ones((64, 32), bool))], (64, 64))
    crowd = Instances.from_masks(half, [1], CLASSES, crowd=np.array([True]))
    losses = model.loss(raw, [crowd])
    torch.stack(list(losses.values())).sum().backward()
    assert losses["box"] == losses["mask"] == 0
    within = parts.overlaps(torch.tensor([[0, 0, 0.5, 1]]), parts.corners(raw.priors[0]), of_second=True)[0] > 0.7
    assert within.any() and not raw.logits.grad[0, within].any() and raw.logits.grad[0, ~within].any()
    errors = F.softplus(model.semantic(raw.finest)[0])  # against nothing anywhere
    expected = (errors.sum() - errors[1, :, :4].sum()) / 64
    torch.testing.assert_close(losses["semantic"], expected)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_masks_drawn_out_of_many_count_for_all(monkeypatch):
    truth = PictureTruth.of(squares((64, 64), 1, side=24), (16, 16), (16, 16), torch.device("cpu"))
    coefficients, prototypes = torch.rand(1, 8).repeat(30, 1), torch.rand(8, 16, 16)
    rows = torch.zeros(30, dtype=torch.int64)
    whole = truth.mask_loss(coefficients, prototypes, rows)
    monkeypatch.setattr(prototype_parts, "AT_ONCE", 7)
    torch.testing.assert_close(truth.mask_loss(coefficients, prototypes, rows), whole)


def test_it_learns_two_pictures():
    size = (96, 96)
    truths = [squares(size, 3, side=24, seed=1), squares(size, 3, side=24, seed=2)]
    images = painted(size, truths)
    model = build(channels=32).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(50):
        total = torch.stack(list(model.loss(model(images), truths).values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert totals[-1] < 0.05 * totals[0]
    with torch.no_grad():
        results = model.eval().decode(model(images), [size] * 2)
    for truth, result in zip(truths, results, strict=True):
        sure = result[result.scores > 0.5]
        assert (sure.masks.iou(truth.masks).max(0) > 0.6).all(), "every object is found"
        assert set(sure.labels) == set(truth.labels)


# ---- prediction


@torch.no_grad()
def test_thresholds_and_numbers_are_kept_and_can_be_changed_after_loading(tmp_path):
    model = build(score_threshold=0.01, nms_threshold=0.9, max_detections=40, candidates=50).eval()
    found = load(save(model, tmp_path / "model.safetensors"))
    assert (found.score_threshold, found.nms_threshold, found.max_detections, found.candidates) == (0.01, 0.9, 40, 50)
    raw = found(pictures(1, (64, 80)))
    many = found.decode(raw, [(64, 80)])[0]
    assert len(many) == 40 and (np.diff(many.scores) <= 0).all()
    found.max_detections = 7
    assert np.array_equal(found.decode(raw, [(64, 80)])[0].scores, many.scores[:7])
    found.score_threshold = 0.999
    none = found.decode(raw, [(64, 80)])[0]
    assert len(none) == 0 and none.size == (64, 80)


@pytest.mark.parametrize(("size", "options"), [((90, 101), {}), ((90, 101), {"input_size": 160})])
@torch.no_grad()
def test_masks_are_the_enlarged_maps_within_their_boxes(size, options):
    model = build(score_threshold=0.0, max_detections=20, **options).eval()
    raw = model(pictures(1, size))
    found = model.decode_tensors(raw, torch.tensor(size))
    assert found.seen.tolist() == ([160, 160] if options else list(size))
    whole = size if options else (4 * found.maps.shape[1], 4 * found.maps.shape[2])
    expected = F.interpolate(found.maps[None], whole, mode="bilinear", align_corners=False)[0, :, : size[0], : size[1]]
    result = model.decode(raw, [size])[0]
    sure = (expected - 0.5).abs() > 1e-5
    assert np.array_equal(result.masks.dense() & sure.numpy(), ((expected > 0.5) & sure).numpy())
    assert result.masks.areas().max() > 0
    for box, mask in zip(result.boxes, result.masks.boxes(), strict=True):
        margin = 2 * 4 * max(size) / min(found.seen.tolist())
        near = (mask[:2] >= box[:2] - margin).all() and (mask[2:] <= box[2:] + margin).all()
        assert near or not mask.any()


@torch.no_grad()
def test_other_sizes_scale_boxes_and_masks():
    model = build(score_threshold=0.0, max_detections=20).eval()
    raw = model(pictures(1, (64, 96)))
    own, double = (model.decode(raw, [size])[0] for size in ((64, 96), (128, 192)))
    np.testing.assert_allclose(double.boxes, 2 * own.boxes, atol=1e-3)
    np.testing.assert_allclose(double.masks.areas(), 4 * own.masks.areas(), atol=60, rtol=0.1)


@torch.no_grad()
def test_what_an_export_traces_is_what_decode_gives():
    model = build(input_size=96).eval()

    class Whole(torch.nn.Module):
        def forward(self, images, size):
            return tuple(model.decode_tensors(model(images), size))

    size = torch.tensor([64, 80])
    traced = torch.export.export(Whole(), (pictures(1, (64, 80)), size), strict=False).module()
    model.score_threshold = 0.05
    for seed in (1, 2):
        images = pictures(1, (64, 80), seed)
        for found, expected in zip(traced(images, size), Whole()(images, size), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# ---- what it must bear


@pytest.mark.parametrize("options", [{}, {"input_size": 96}], ids=["own size", "96"])
@pytest.mark.parametrize(
    ("size", "count", "side"),
    [
        pytest.param((64, 96), 0, None, id="nothing"),
        pytest.param((64, 96), 1, 3, id="3 pixels"),
        pytest.param((128, 128), 1000, 6, id="1000 objects"),
        pytest.param((17, 4000), 3, None, id="17 x 4000"),
        pytest.param((1, 40), 2, None, id="1 pixel high"),
        pytest.param((1, 1), 1, 1, id="1 pixel"),
    ],
)
def test_odd_pictures_are_trained_on_and_predicted(options, size, count, side):
    model = build(score_threshold=0.0, **options).train()
    given = [squares(size, count, side), squares(size, 0)]
    losses = model.loss(model(pictures(2, size)), given)
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(pictures(2, size))
        losses = model.loss(raw, given)
    assert raw.logits.dtype == torch.bfloat16
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    results = model.eval().decode(raw, [size, (50, 31)])
    assert [r.size for r in results] == [size, (50, 31)] and len(results[0]) > 0


@torch.no_grad()
def test_equal_scores_everywhere_are_decoded():
    model = build().eval()
    for parameter in model.head.parameters():
        parameter.zero_()
    result = model.decode(model(pictures(1, (64, 64))), [(64, 64)])[0]
    assert len(result) == 100 and np.ptp(result.scores) < 1e-6
    boxes = torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.6, 0.6], [0.1, 0.1, 0.2, 0.21]])
    rows = parts.fast_nms(boxes, torch.full((3, 1), 0.5), threshold=0.5, candidates=3, most=3)[0]
    assert len(rows) == 2 and 1 in rows, "one of two alike goes, though none is better"


@torch.no_grad()
def test_pictures_of_a_batch_do_not_touch_one_another():
    model = build().eval()
    images = pictures(2, (64, 96))
    together = model.decode(model(images), [(64, 96)] * 2)
    for image, result in zip(images, together, strict=True):
        alone = model.decode(model(image[None]), [(64, 96)])[0]
        np.testing.assert_allclose(alone.scores, result.scores, atol=1e-4)
        assert np.mean(alone.labels == result.labels) > 0.9


def test_scales_follow_the_input_size():
    assert build(input_size=550).scales == (24, 48, 96, 192, 384)
    assert build().scales == (24, 48, 96, 192, 384)
    assert build(input_size=700).scales == (30, 61, 122, 244, 488)  # the release's
    own = build(scales=[8, 16, 32, 64, 128], ratios=[1, 4], square=False)
    priors = own(pictures(1, (64, 64))).priors[0]
    np.testing.assert_allclose(priors[:2, 2:] * 64, [[8, 8], [16, 4]])
    np.testing.assert_allclose(priors[:2, :2] * 64, 4)


def test_one_class_and_named_classes():
    assert YOLACT(3, 1, **SMALL).classes.names == ("object",)
    assert build().classes is CLASSES
    assert [len(level) > 0 for level in build().levels()].count(True) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "classes must be"),
        ({"channels": 0}, "channels must be a whole number"),
        ({"prototypes": True}, "prototypes must be a whole number"),
        ({"input_size": 31}, "input_size must be a whole number from 32"),
        ({"input_size": 550.0}, "input_size must be a whole number"),
        ({"encoder": "densenet121", "input_size": 100}, "input_size must be a multiple of 32"),
        ({"scales": [24, 48]}, "scales must be 5 numbers, one for each of the strides"),
        ({"scales": 24}, "scales must be one number above 0 or more"),
        ({"ratios": []}, "ratios must be one number above 0 or more"),
        ({"ratios": [1, "2"]}, "ratios must be one number above 0 or more"),
        ({"square": 1}, "square must be true or false"),
        ({"score_threshold": 1.1}, "score_threshold must be a number from 0 to 1"),
        ({"nms_threshold": "0.5"}, "nms_threshold must be a number"),
        ({"max_detections": 0}, "max_detections must be a whole number"),
        ({"candidates": None}, "candidates must be a whole number"),
        ({"std": [0, 1, 1]}, "std must be one number above 0"),
        ({"encoder_options": {"output_stride": 8}}, "encoder_options are named values"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        YOLACT(3, arguments.pop("classes", 3), **SMALL | arguments)


def test_wrong_truths_are_refused():
    model = build()
    raw = model(pictures(2, (64, 64)))
    one = squares((64, 64), 1)
    with pytest.raises(KirieError, match="one truth per picture, got 1 for 2"):
        model.loss(raw, [one])
    with pytest.raises(KirieError, match="one size"):
        model.loss(raw, [one, squares((64, 65), 1)])
    with pytest.raises(KirieError, match="PanopticMap"):
        model.loss(raw, [PanopticMap(np.zeros((64, 64), np.int32), (), CLASSES)] * 2)
    many = Instances.from_masks(one.masks, [3], Classes(("a", "b", "c", "d")))
    with pytest.raises(KirieError, match=r"class id 3; the model knows 0\.\.2"):
        model.loss(raw, [many, many])
