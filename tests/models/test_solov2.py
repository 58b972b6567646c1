"""SOLOv2: its cells and losses against plain arithmetic, Matrix NMS against its definition, masks, and its limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models.file import load, save
from kirie.models.parts.dynamic_masks import mask_facts, mask_logits, matrix_nms, point_nms
from kirie.models.parts.grid_cells import TaughtCells, category_loss
from kirie.models.parts.pasting import on_cells
from kirie.models.solov2 import CELL, SOLOv2, SOLOv2Raw
from kirie.results import Instances

CLASSES = Classes(("red", "green", "blue"))
SMALL = {
    "encoder": "test_efficientnet",
    "channels": 16,
    "grids": (16, 8),
    "strides": (4, 8),
    "scale_ranges": ((1, 24), (20, 96)),
    "width": 16,
    "depth": 1,
    "mask_width": 8,
    "mask_channels": 8,
}


def build(classes=CLASSES, **options):
    torch.manual_seed(0)
    return SOLOv2(3, classes, **SMALL | options)


def truth_of(boxes, size, labels=None, crowd=None):
    """Rectangles `xyxy` as instances."""
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    labels = np.arange(len(boxes)) % len(CLASSES) if labels is None else labels
    crowd = None if crowd is None else np.array(crowd, bool)
    return Instances.from_masks(Masks.from_dense(masks), labels, CLASSES, crowd=crowd)


def painted(truth):
    """A black picture (3, H, W) in which each object has its class's colour."""
    image = torch.zeros(3, *truth.size)
    for label, mask in zip(truth.labels, truth.masks, strict=True):
        image[label, torch.from_numpy(mask)] = 1
    return image


def raw_of(model, features, category, kernels, seen):
    """A raw output of one picture with one logit and one kernel per grid cell given by {(grid, row, column): ...}."""
    classes = len(model.classes)
    categories = tuple(torch.full((1, classes, s, s), -9.0) for s in model.grids)
    made = tuple(torch.zeros(1, features.shape[1], s, s) for s in model.grids)
    for (grid, row, column), (label, score) in category.items():
        categories[grid][0, label, row, column] = math.log(score / (1 - score))
        made[grid][0, :, row, column] = kernels[grid, row, column]
    return SOLOv2Raw(categories, made, features, torch.tensor([seen]))


# ---- which cell learns which object


def owners_by_hand(truth, frame, grids, ranges):
    """Per cell the objects that may own it, straight from the paper's words, on dense masks."""
    allowed = []
    for level, (grid, (low, high)) in enumerate(zip(grids, ranges, strict=True)):
        may = [[set() for _ in range(grid)] for _ in range(grid)]
        for index, (mask, box) in enumerate(zip(truth.masks, truth.boxes, strict=True)):
            height, width = box[3] - box[1], box[2] - box[0]
            root = math.sqrt(height * width)
            if (root < low and level > 0) or (root > high and level < len(grids) - 1):
                continue
            y, x = (np.argwhere(mask) + 0.5).mean(0)
            for row, column in itertools.product(range(grid), repeat=2):
                spans = []
                for place, centre, side, whole in ((row, y, height, frame[0]), (column, x, width, frame[1])):
                    cell = whole / grid
                    own = int(centre // cell)
                    touches = place * cell <= centre + 0.1 * side and (place + 1) * cell > centre - 0.1 * side
                    spans.append(touches and abs(place - own) <= 1)
                if all(spans):
                    may[row][column].add(index)
        allowed += [each for line in may for each in line]
    return allowed


def test_cells_around_the_centre_of_mass_learn_an_object():
    rng = np.random.default_rng(3)
    boxes = []
    for _ in range(14):
        height, width = rng.integers(1, 60, 2)
        top, left = rng.integers(0, 70 - height), rng.integers(0, 90 - width)
        boxes.append((left, top, left + width, top + height))
    truth = truth_of(boxes, (70, 90))
    frame, grids, ranges = (96, 96), (16, 8), ((1, 24), (20, 96))
    taught = TaughtCells.of(truth, frame, grids, ranges)
    allowed = owners_by_hand(truth, frame, grids, ranges)
    assert len(taught.owners) == 16**2 + 8**2 == len(allowed)
    area = (truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(1)
    for owner, may in zip(taught.owners, allowed, strict=True):
        assert (owner in may) if may else owner == -1
    assert len(set(taught.owners) - {-1}) >= 12
    alone = [(owner, may) for owner, may in zip(taught.owners, allowed, strict=True) if len(may) > 1]
    assert alone  # where two want a cell it is the smaller one's, but for the cells of centres
    assert np.mean([area[owner] == min(area[list(may)]) for owner, may in alone]) > 0.5
    assert taught.masks.size == frame


def test_an_object_of_one_pixel_and_one_larger_than_all_ranges_are_learned():
    truth = truth_of([(5, 5, 6, 6), (0, 0, 90, 70)], (70, 90))
    taught = TaughtCells.of(truth, (96, 96), (16, 8), ((4, 24), (20, 60)))
    assert set(taught.owners) == {-1, 0, 1}
    assert (taught.owners[: 16**2] == 0).sum() == 1
    assert not (taught.owners[: 16**2] == 1).any()


def test_no_object_loses_the_cell_of_its_centre_to_a_neighbours_rim():
    centre = [(44, 44, 53, 53)]  # in the middle of a 24-pixel square that is 3 x 3 cells wide at its heart
    truth = truth_of([(30, 30, 50, 50), *centre], (96, 96))
    taught = TaughtCells.of(truth, (96, 96), (48,), ((1, 96),))
    grid = taught.owners.reshape(48, 48)
    assert grid[20, 20] == 0 and grid[24, 24] == 1


def test_masks_on_cells_are_those_of_more_than_half_or_the_best():
    masks = Masks.from_dense(np.zeros((3, 16, 24), bool))
    dense = np.zeros((3, 16, 24), bool)
    dense[0, 2:13, 3:20] = True
    dense[1, 7, 9] = True
    masks = Masks.from_dense(dense)
    found = on_cells(masks, (4, 6))
    shares = F.avg_pool2d(torch.from_numpy(dense).float(), 4).numpy()
    np.testing.assert_array_equal(found[0], shares[0] > 0.5)
    assert found[1].sum() == 1 and found[1, 1, 2]
    assert not found[2].any()


# ---- losses


def test_the_losses_are_those_of_the_definition():
    model = build().eval()
    size = (60, 90)
    truths = [truth_of([(4, 6, 20, 18), (40, 10, 85, 55)], size), truth_of([(30, 20, 41, 33)], size, [2])]
    images = torch.stack([painted(truth) for truth in truths])
    raw = model(images)
    found = model.loss(raw, truths)
    assert found.keys() == {"category", "mask"}
    frame = tuple(CELL * side for side in raw.features.shape[2:])
    assert frame == (64, 96)
    logits = torch.cat([c.flatten(2) for c in raw.categories], 2)
    kernels = torch.cat([k.flatten(2) for k in raw.kernels], 2)
    target, dice = torch.zeros_like(logits), []
    for index, truth in enumerate(truths):
        taught = TaughtCells.of(truth, frame, model.grids, model.scale_ranges)
        for cell, owner in enumerate(taught.owners):
            if owner < 0:
                continue
            target[index, truth.labels[owner], cell] = 1
            p = F.conv2d(raw.features[index][None], kernels[index, :, cell].reshape(1, -1, 1, 1))[0, 0].sigmoid()
            mask = F.pad(torch.from_numpy(truth.masks[owner].dense()[0]).float(), (0, 6, 0, 4))
            q = (F.avg_pool2d(mask[None], CELL)[0] > 0.5).float()
            dice.append(1 - 2 * (p * q).sum() / ((p * p).sum() + (q * q).sum()))
    assert len(dice) > 4
    focal = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2, reduction="sum") / (len(dice) + 1)
    torch.testing.assert_close(found["category"], focal)
    torch.testing.assert_close(found["mask"], 3 * torch.stack(dice).mean())


def test_a_crowd_is_neutral_for_its_class_alone():
    size, frame, grids, ranges = (64, 64), (64, 64), (8,), ((1, 64),)
    single = truth_of([(8, 8, 24, 24)], size, [0])
    both = truth_of([(8, 8, 24, 24), (0, 0, 64, 32)], size, [0, 0], crowd=[False, True])
    taught, reached = (TaughtCells.of(truth, frame, grids, ranges) for truth in (single, both))
    np.testing.assert_array_equal(taught.owners, reached.owners)
    logits = torch.zeros(1, 3, 64, requires_grad=True)
    category_loss(logits, [reached]).backward()
    still = logits.grad[0].reshape(3, 8, 8) == 0
    positive = reached.owners.reshape(8, 8) >= 0
    assert still[0, :4].numpy().sum() == 32 - positive.sum() and not still[0, 4:].any() and not still[1:].any()
    assert not still[0][torch.from_numpy(positive)].any()


def test_memory_is_bounded_and_masks_are_drawn():
    """With more positive cells than `max_positives`, so many are learned."""
    rng = np.random.default_rng(0)
    size = (64, 64)
    corners = rng.integers(0, 56, (1000, 2))
    truth = truth_of([(x, y, x + 8, y + 8) for x, y in corners], size)
    image = torch.rand(1, 3, *size)
    model = build(grids=(40, 8), max_positives=20)
    sizes = []
    linear = torch.Tensor.__matmul__

    def watched(a, b):
        sizes.append(len(a))
        return linear(a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", watched)
        loss = model.loss(model(image), [truth])
    assert sizes == [20]
    sum(loss.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_few_steps_lower_the_loss():
    truths = [truth_of([(4, 6, 24, 30), (40, 30, 60, 60)], (64, 64)), truth_of([(20, 20, 50, 44)], (64, 64), [1])]
    images = torch.stack([painted(truth) for truth in truths])
    model = build().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = torch.stack(list(model.loss(model(images), truths).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    found = model.decode(model(images), [(64, 64)] * 2)
    for each, truth in zip(found, truths, strict=True):
        iou = each.masks.iou(truth.masks) * (each.labels[:, None] == truth.labels)
        assert (iou.max(0) > 0.7).all()


# ---- prediction


def test_point_nms_looks_up_and_left():
    scores = torch.rand(1, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    found = point_nms(scores)
    for k, y, x in itertools.product(range(2), range(5), range(5)):
        near = scores[0, k, max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1].max()
        assert found[0, k, y, x] == (scores[0, k, y, x] if scores[0, k, y, x] == near else 0)


def test_matrix_nms_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((12, 300)) < rng.random((12, 1))).float()
    masks[5] = masks[1]
    labels = torch.from_numpy(rng.integers(0, 2, 12))
    labels[5] = labels[1]
    scores = torch.linspace(0.9, 0.2, 12)
    overlaps, areas = masks @ masks.T, masks.sum(1)
    iou = overlaps / (areas[:, None] + areas - overlaps)
    expected = []
    for j in range(12):
        decay = 1.0
        for i in range(j):
            if labels[i] == labels[j]:
                copy = max([float(iou[k, i]) for k in range(i) if labels[k] == labels[i]], default=0.0)
                decay = min(decay, math.exp(-2 * float(iou[i, j]) ** 2) / math.exp(-2 * copy**2))
        expected.append(float(scores[j]) * decay)
    np.testing.assert_allclose(matrix_nms(scores, labels, areas, overlaps), expected, rtol=1e-5)
    assert matrix_nms(scores[:0], labels[:0], areas[:0], overlaps[:0, :0]).shape == (0,)


@pytest.mark.parametrize("size", [1, 3])
def test_dynamic_kernels_are_convolutions_and_facts_do_not_depend_on_strips(size):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 20, 15, generator=generator)
    kernels = torch.randn(9, 6 * size * size, generator=generator)
    expected = F.conv2d(features[None], kernels.reshape(9, 6, size, size), padding=size // 2)[0]
    torch.testing.assert_close(mask_logits(features, kernels, size), expected, atol=1e-4, rtol=1e-4)
    inside = (expected.sigmoid() > 0.5).flatten(1).float()
    for parts in (1, 7, 20):
        facts = mask_facts(features, kernels, size, parts=parts)
        torch.testing.assert_close(facts.areas, inside.sum(1))
        torch.testing.assert_close(facts.overlaps, inside @ inside.T)
        mean = (expected.sigmoid().flatten(1) * inside).sum(1) / inside.sum(1)
        torch.testing.assert_close(facts.certainty, mean)
    assert mask_logits(features, kernels[:0], size).shape == (0, 20, 15)


def test_boxes_of_masks_are_tight_in_strips_as_well():
    features = torch.full((4, 10, 12), -5.0)
    features[0, 2:5, 3:9] = features[1, 9, 11] = features[3, 0:10, 0] = 5
    for parts in (1, 3, 10):
        found = mask_facts(features, torch.eye(4), parts=parts).boxes
        assert found.tolist() == [[3, 2, 9, 5], [11, 9, 12, 10], [0, 0, 0, 0], [0, 0, 1, 10]]
        assert mask_facts(features, torch.eye(4)[:0], parts=parts).boxes.shape == (0, 4)


@torch.no_grad()
@pytest.mark.parametrize(("seen", "size"), [((61, 90), (61, 90)), ((61, 90), (300, 400)), ((64, 96), (17, 401))])
def test_masks_are_enlarged_twice_as_in_the_reference(seen, size):
    maps = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    maps = F.interpolate(maps[None], (16, 24), mode="bicubic")[0].clamp(0, 1)
    whole = F.interpolate(maps[None], (64, 96), mode="bilinear", align_corners=False)[..., : seen[0], : seen[1]]
    expected = F.interpolate(whole, size, mode="bilinear", align_corners=False)[0]
    found = SOLOv2.cut(np.zeros((3, 4)), maps.numpy(), seen, size)
    assert found.size == size
    assert any(isinstance(item, bytes) for item in found.items) == (size == (300, 400))
    sure = ((expected - 0.5).abs() > 1e-5).numpy()
    assert ((found.dense() == (expected > 0.5).numpy()) | ~sure).all()


def test_boxes_are_those_of_the_masks_and_small_masks_are_none():
    model = build(CLASSES).eval()
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    features = torch.stack([rows, columns, torch.ones(16, 24), ((rows == 2) & (columns < 6)).float()])[None]
    category = {(0, 2, 2): (0, 0.9), (0, 7, 7): (1, 0.8), (1, 3, 3): (1, 0.7), (0, 9, 9): (2, 0.6)}
    kernels = {
        (0, 2, 2): torch.tensor([0, 20.0, -150, 0]),  # right of column 7.5
        (0, 7, 7): torch.tensor([-20.0, 0, 90, 0]),  # above row 4.5
        (1, 3, 3): torch.tensor([-20.0, 0, 110, 0]),  # nearly the same one
        (0, 9, 9): torch.tensor([0, 0, -20.0, 40]),  # six cells
    }
    raw = raw_of(model, features, category, kernels, (64, 96))
    (found,) = model.decode(raw, [(128, 192)])
    assert found.labels.tolist() == [0, 1, 2, 1]
    np.testing.assert_array_equal(found.boxes, found.masks.boxes())
    assert found.scores[:3] == pytest.approx([0.9, 0.8, 0.6], abs=1e-3)
    assert found.scores[3] == pytest.approx(0.7 * math.exp(-2 * (5 / 6) ** 2), abs=0.02)
    boxes = model.decode_tensors(raw, torch.tensor([128, 192])).boxes
    assert boxes.tolist()[:2] == [[64, 0, 192, 128], [0, 0, 192, 40]]
    np.testing.assert_allclose(boxes, found.boxes, atol=8)
    model.least_cells = 6
    assert model.decode(raw, [(128, 192)])[0].labels.tolist() == [0, 1, 1]
    model.max_detections = 1
    assert model.decode(raw, [(128, 192)])[0].labels.tolist() == [0]
    model.score_threshold = 0.95
    assert len(model.decode(raw, [(128, 192)])[0]) == 0


@torch.no_grad()
def test_identical_scores_are_decoded_in_the_same_way_each_time():
    model = build().eval()
    raw = model(torch.zeros(1, 3, 64, 64))
    alike = raw._replace(categories=tuple(torch.zeros_like(c) for c in raw.categories))
    first, second = (model.decode(alike, [(64, 64)])[0] for _ in range(2))
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.masks.rles() == second.masks.rles()


@torch.no_grad()
def test_an_exported_road_gives_the_same_for_other_pictures():
    """The steps that exports hold do not depend on how many objects there were."""
    model = build(update_threshold=0.0, max_detections=1000).eval()

    class Road(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images, size):
            return tuple(self.model.decode_tensors(self.model(images), size))

    size = torch.tensor([100, 80])
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.score_threshold = float(model(images).categories[0].sigmoid().max()) * 0.99
    exported = torch.export.export(Road(), (images, size)).module()
    counts = set()
    for other in (images, images.flip(3) * 2, images - 0.5, torch.zeros_like(images)):
        expected = model.decode_tensors(model(other), size)
        counts.add(len(expected.scores))
        for mine, theirs in zip(exported(other, size), expected, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert len(counts) > 1 and 0 in counts


# ---- pictures and arguments


@pytest.mark.parametrize("size", [(9, 700), (1, 30), (3, 3)])
def test_pictures_of_odd_shapes_are_trained_on_and_predicted(size):
    model = build(score_threshold=0.0, update_threshold=0.0)
    truth = truth_of([(0, 0, min(3, size[1]), min(3, size[0]))], size)
    image = torch.rand(1, 3, *size)
    loss = torch.stack(list(model.loss(model(image), [truth]).values())).sum()
    loss.backward()
    assert loss.isfinite()
    (found,) = model.eval().decode(model(image), [size])
    assert found.size == size


def test_strides_choose_the_maps_that_grids_see():
    model = build(grids=(12, 10, 8, 6, 4), strides=(8, 8, 16, 32, 32), scale_ranges=((1, 9),) * 5).eval()
    seen = []
    model.head.register_forward_hook(lambda _, given, output: seen.extend(given[0]))
    model(torch.rand(1, 3, 96, 128))
    assert [tuple(x.shape[2:]) for x in seen] == [(12, 16), (12, 16), (6, 8), (3, 4), (3, 4)]


@torch.no_grad()
def test_three_by_three_kernels_and_own_grids_are_kept_in_the_file(tmp_path):
    model = build(kernel_size=3, grids=[20, 10, 5], strides=[4, 8, 16], scale_ranges=[[0, 9], [8, 20.5], [20, 99]])
    model.eval()
    found = load(save(model, tmp_path / "model.safetensors"))
    assert found.scale_ranges == ((0, 9), (8, 20.5), (20, 99)) and found.grids == (20, 10, 5)
    images = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(model(images).kernels, found(images).kernels, strict=True))
    assert found(images).kernels[0].shape == (1, 8 * 9, 20, 20)


@pytest.mark.parametrize("encoder", ["resnet10t", "mobilenetv3_small_050", "test_convnext"])
def test_encoders_of_any_kind(encoder):
    model = build(encoder=encoder).eval()
    truth = truth_of([(4, 6, 24, 30)], (64, 64))
    assert sum(model.loss(model(painted(truth)[None]), [truth]).values()).isfinite()
    assert len(model.mask_head.branches) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grids": ()}, "grids must be 1 to 5 whole numbers"),
        ({"grids": (1, 2, 3, 4, 5, 6)}, "grids must be 1 to 5 whole numbers"),
        ({"grids": (16, 0)}, "grids must be"),
        ({"grids": 16}, "grids must be"),
        ({"grids": (16, 8, 4)}, "strides must be 3 numbers"),
        ({"strides": (4, 64)}, r"out of \[4, 8, 16, 32\]"),
        ({"scale_ranges": ((1, 24),)}, "scale_ranges must be 2 pairs"),
        ({"scale_ranges": ((24, 1), (20, 96))}, "a smaller and a larger"),
        ({"scale_ranges": ((1, 24), (30, 96))}, "no gap"),
        ({"scale_ranges": ((1, "a"), (30, 96))}, "scale_ranges must be"),
        ({"scale_ranges": (1, 24)}, "scale_ranges must be"),
        ({"kernel_size": 5}, "kernel_size must be 1 or 3"),
        ({"kernel_size": True}, "kernel_size must be 1 or 3"),
        ({"width": 0}, "width must be"),
        ({"depth": 0}, "depth must be"),
        ({"max_positives": 0}, "max_positives must be"),
        ({"max_detections": 1.5}, "max_detections must be"),
        ({"least_cells": -1}, "least_cells must be"),
        ({"score_threshold": 1.1}, "score_threshold must be"),
        ({"update_threshold": "no"}, "update_threshold must be"),
        ({"mean": [0.5, "a", 0.5]}, "mean must be"),
        ({"encoder": "nothing"}, "no encoder called"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        build(**arguments)


def test_truths_of_another_size_than_the_pictures_are_refused():
    model = build()
    with pytest.raises(KirieError, match=r"size \(32, 64\), the pictures \(64, 64\)"):
        model.loss(model(torch.rand(1, 3, 64, 64)), [truth_of([(1, 1, 9, 9)], (32, 64))])
