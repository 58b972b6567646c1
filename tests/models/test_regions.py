"""Anchors, proposals and regions against torchvision's own parts."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import _utils as peer
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign, box_iou, nms, roi_align

from kirie.masks import Masks
from kirie.models.parts import anchors as anchor_maths
from kirie.models.parts.pasting import cut_boxes
from kirie.models.parts.proposals import NEUTRAL, NOTHING, matched, proposal_losses, sampled, select
from kirie.models.parts.regions import BoxHead, MaskHead, box_losses, detected, mask_aims, pooled


def boxes(count, size=(200, 300), least=2, seed=0):
    made = torch.Generator().manual_seed(seed)
    limits = torch.tensor([size[1], size[0]])
    sides = least + torch.rand(count, 2, generator=made) * limits / 2
    first = torch.rand(count, 2, generator=made) * (limits - sides)
    return torch.cat([first, first + sides], 1)


# ---- anchors


@pytest.mark.parametrize("cells", [(5, 7), (1, 1), (13, 4)])
def test_anchors_are_torchvisions(cells):
    ratios = (0.5, 1.0, 2.0, 3.7)
    maps, image = torch.zeros(1, 1, *cells), torch.zeros(1, 3, cells[0] * 16 + 3, cells[1] * 16 + 5)
    generator = AnchorGenerator(((48,),), (ratios,))
    expected = generator(ImageList(image, [(10, 10)]), [maps])[0]
    own = anchor_maths.cell_anchors(48, ratios, rounded=True)
    steps = tuple(side // count for side, count in zip(image.shape[-2:], cells, strict=True))
    torch.testing.assert_close(anchor_maths.grid_anchors(own, cells, steps), expected)


def test_anchors_have_their_area_and_ratio():
    found = anchor_maths.cell_anchors(32, (0.5, 1, 2))
    width, height = (found[:, 2:] - found[:, :2]).T
    torch.testing.assert_close(width * height, torch.full((3,), 1024.0))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]))
    torch.testing.assert_close(found[:, 2:], -found[:, :2])


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (10, 10, 5, 5)])
def test_boxes_are_coded_as_torchvision_does(weights):
    coder = peer.BoxCoder(tuple(map(float, weights)))
    own, anchors = boxes(50, seed=1), boxes(50, seed=2)
    codes = anchor_maths.coded(own, anchors, weights)
    torch.testing.assert_close(codes, coder.encode([own], [anchors])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(anchor_maths.decoded(codes, anchors, weights), own, rtol=1e-4, atol=1e-3)
    wild = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 40
    found = anchor_maths.decoded(wild, anchors, weights)
    torch.testing.assert_close(found, coder.decode(wild, [anchors])[:, 0], rtol=1e-4, atol=1e-2)
    assert found.isfinite().all()


def test_boxes_are_cut_to_the_picture():
    found = anchor_maths.clipped(torch.tensor([[-5.0, -5, 400, 50], [310, 10, 320, 20]]), torch.tensor([200, 300]))
    assert found.tolist() == [[0, 0, 300, 50], [300, 10, 300, 20]]
    assert anchor_maths.wider(found, 0).tolist() == [True, False]


# ---- what learns


@pytest.mark.parametrize("fall_back", [True, False])
@pytest.mark.parametrize("count", [1, 5, 100])
def test_boxes_are_matched_as_torchvision_does(count, fall_back):
    places, truths = boxes(400, seed=3), boxes(count, seed=4)
    table = torch.zeros(count, 400)
    for row, truth in enumerate(truths):
        inside = torch.minimum(places[:, 2:], truth[2:]) - torch.maximum(places[:, :2], truth[:2])
        inside = inside.clamp(min=0).prod(1)
        areas = (places[:, 2:] - places[:, :2]).prod(1) + (truth[2:] - truth[:2]).prod() - inside
        table[row] = inside / areas
    expected = peer.Matcher(0.6, 0.3, allow_low_quality_matches=fall_back)(table)
    found = matched(places, truths, truths[:0], positive=0.6, negative=0.3, fall_back=fall_back)
    assert torch.equal(found, expected)
    assert peer.Matcher.BELOW_LOW_THRESHOLD == NOTHING and peer.Matcher.BETWEEN_THRESHOLDS == NEUTRAL
    assert (found >= 0).any()


def test_a_truth_that_nothing_overlaps_makes_nothing_positive():
    far = torch.tensor([[900.0, 900, 910, 910]])
    assert (matched(boxes(50), far, far[:0], positive=0.7, negative=0.3, fall_back=True) == NOTHING).all()
    assert (matched(boxes(50), far[:0], far[:0], positive=0.7, negative=0.3, fall_back=True) == NOTHING).all()


def test_boxes_in_a_crowd_are_neutral_unless_they_have_a_truth():
    places = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [8, 0, 18, 10], [50, 50, 60, 60]])
    crowd = torch.tensor([[0.0, 0, 12, 20]])
    places[1] = torch.tensor([5.0, 0, 15, 10])  # 70 % of it
    truth = torch.tensor([[0.0, 0, 10, 9]])
    found = matched(places, truth, crowd, positive=0.7, negative=0.3)
    assert found.tolist() == [0, NEUTRAL, NOTHING, NOTHING]


@pytest.mark.parametrize(("positive", "negative", "expected"), [
    (10, 500, (10, 54)), (100, 500, (32, 32)), (100, 5, (32, 5)), (0, 3, (0, 3)), (0, 0, (0, 0)),
])  # fmt: skip
def test_a_sample_has_both_kinds(positive, negative, expected):
    state = torch.full((700,), NEUTRAL)
    state[:positive], state[150 : 150 + negative] = 3, NOTHING
    found = sampled(state, 64, 0.5)
    assert tuple(map(len, found)) == expected
    assert (found[0] < positive).all() and ((found[1] >= 150) & (found[1] < 150 + negative)).all()
    assert all(len(index.unique()) == len(index) for index in found)


def test_proposals_are_the_best_and_do_not_overlap():
    torch.manual_seed(0)
    anchors = [boxes(300, seed=5), boxes(40, seed=6)]
    logits, codes = [torch.randn(300), torch.randn(40)], [torch.randn(300, 4) * 0.1, torch.randn(40, 4) * 0.1]
    found, scores = select(logits, codes, anchors, torch.tensor([200, 300]), candidates=100, most=60)
    assert found.shape == (60, 4) and (scores.diff() <= 0).all()
    assert (found >= 0).all() and (found[:, 2] <= 300).all() and (found[:, 3] <= 200).all()
    whole = select(logits, codes, anchors, torch.tensor([200, 300]), candidates=300, most=1000)[0]
    expected = []
    for row, code, anchor in zip(logits, codes, anchors, strict=True):
        own = anchor_maths.clipped(anchor_maths.decoded(code, anchor), torch.tensor([200, 300]))
        kept = own[nms(own, row, 0.7)]
        assert len(kept) < len(own) and box_iou(kept, kept).fill_diagonal_(0).max() <= 0.7
        expected += kept.tolist()
    assert sorted(whole.tolist()) == sorted(expected)
    equal = select(
        [torch.zeros(300), torch.zeros(40)], codes, anchors, torch.tensor([200, 300]), candidates=100, most=60
    )
    assert len(equal[0]) == 60
    none = select(logits, codes, anchors, torch.tensor([200, 300]), candidates=100, most=60, least=1e6)
    assert none[0].shape == (0, 4) and none[1].shape == (0,)


def test_losses_of_proposals_without_an_object_are_finite():
    logits, codes = torch.zeros(2, 50, requires_grad=True), torch.zeros(2, 50, 4, requires_grad=True)
    empty = [torch.zeros(0, 4)] * 2
    for fixed in (True, False):
        objects, box = proposal_losses(logits, codes, boxes(50), empty, empty, fixed=fixed)
        assert box == 0 and objects > 0
    everywhere = [torch.tensor([[0.0, 0, 300, 200]])] * 2
    objects, box = proposal_losses(logits, codes, boxes(50), empty, everywhere, fixed=False)
    assert objects == box == 0
    (objects + box).backward()
    assert codes.grad.abs().sum() == 0


# ---- regions


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_regions_are_pooled_as_torchvision_does(memory):
    torch.manual_seed(0)
    strides, size = (4, 8, 16, 32), (512, 640)
    maps = [torch.randn(2, 5, size[0] // s, size[1] // s).to(memory_format=memory) for s in strides]
    regions = [boxes(40, size, seed=7), boxes(30, (60, 70), seed=8)]
    regions[0][0] = torch.tensor([0.0, 0, 224, 224])
    peers = MultiScaleRoIAlign([str(i) for i in range(4)], 7, 2)
    expected = peers({str(i): x for i, x in enumerate(maps)}, regions, [size] * 2)
    found = pooled(maps, regions, strides, 7, aligned=False, samples=2)
    torch.testing.assert_close(found, expected)
    none = pooled(maps, [regions[0][:0]] * 2, strides, 7, aligned=True, samples=0)
    assert none.shape == (0, 5, 7, 7)


@pytest.mark.parametrize("norm", [False, True])
def test_heads_take_no_regions(norm):
    box = BoxHead(8, 7, 3, width=16, convs=1, norm=norm, spare=2).eval()
    logits, codes = box(torch.zeros(0, 8, 7, 7))
    assert logits.shape == (0, 6) and codes.shape == (0, 3, 4)
    mask = MaskHead(8, 3, width=8, norm=norm).eval()
    assert mask(torch.zeros(0, 8, 14, 14), torch.zeros(0, dtype=torch.int64)).shape == (0, 28, 28)


@torch.no_grad()
def test_the_mask_head_gives_the_map_of_the_class():
    torch.manual_seed(0)
    head = MaskHead(8, 5, width=8).eval()
    nn.init.normal_(head.predictor.bias)
    x, labels = torch.randn(6, 8, 14, 14), torch.tensor([0, 4, 2, 2, 1, 3])
    every = head.predictor(torch.relu(head.enlarge(head.convs(x))))
    torch.testing.assert_close(head(x, labels), every[torch.arange(6), labels])


def test_spare_logits_count_and_are_never_answered():
    logits = torch.tensor([[1.0, 0, 4, 0]])  # one class, two spare, background
    found = detected(logits, torch.zeros(1, 1, 4), boxes(1), torch.tensor([200, 300]), score=0.01, overlap=0.5, most=10)
    assert found[1].tolist() == [0]
    torch.testing.assert_close(found[2], logits.softmax(1)[:, 0])


def test_a_region_may_be_of_several_classes_and_equal_scores_are_no_trouble():
    regions = torch.tensor([[10.0, 10, 60, 60]] * 3 + [[100, 100, 150, 150]])
    answers = {"score": 0.05, "overlap": 0.5, "size": torch.tensor([200, 300])}
    own, labels, scores = detected(torch.zeros(4, 3), torch.zeros(4, 2, 4), regions, most=100, **answers)
    assert sorted(zip(own[:, 0].tolist(), labels.tolist(), strict=True)) == [(10, 0), (10, 1), (100, 0), (100, 1)]
    torch.testing.assert_close(scores, torch.full((4,), 1 / 3))
    assert len(detected(torch.zeros(4, 3), torch.zeros(4, 2, 4), regions, most=2, **answers)[0]) == 2
    assert [len(x) for x in detected(torch.zeros(0, 3), torch.zeros(0, 2, 4), regions[:0], most=2, **answers)] == [
        0
    ] * 3


def test_the_last_of_many_classes_is_suppressed_as_exactly_as_the_first():
    """At a picture's far corner, where float32 has few digits for boxes that were moved away from other classes'."""
    size, classes, count = torch.tensor([4000, 4000]), 80, 4000
    found = []
    for label in (0, classes - 1):
        generator = torch.Generator().manual_seed(1)
        first = 3700 + torch.rand(count, 2, generator=generator) * 200
        regions = torch.cat([first, first + 15 + torch.rand(count, 2, generator=generator) * 10], 1)
        logits = torch.full((count, classes + 1), -20.0)
        logits[:, label] = torch.rand(count, generator=generator) * 4
        logits[:, -1] = 0
        own = detected(logits, torch.zeros(count, classes, 4), regions, size, score=0.05, overlap=0.5, most=count)
        assert set(own[1].tolist()) == {label}
        found.append(own[0])
    assert torch.equal(*found) and 0 < len(found[0]) < count


def test_losses_of_regions_are_those_of_the_paper():
    torch.manual_seed(0)
    logits, codes, regions = torch.randn(5, 4), torch.randn(5, 3, 4), boxes(5)
    labels, truths = torch.tensor([2, 0, -1, -1, -1]), boxes(2, seed=9)
    classification, box = box_losses(logits, codes, regions, labels, truths, beta=0.0)
    expected = nn.functional.cross_entropy(logits, torch.tensor([2, 0, 3, 3, 3]))
    torch.testing.assert_close(classification, expected)
    aim = peer.BoxCoder((10.0, 10.0, 5.0, 5.0)).encode([truths], [regions[:2]])[0]
    own = torch.stack([codes[0, 2], codes[1, 0]])
    torch.testing.assert_close(box, (own - aim).abs().sum() / 5, rtol=1e-4, atol=1e-4)
    smooth = box_losses(logits, codes, regions, labels, truths, beta=1.0)[1]
    assert smooth < box


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("rles", [True, False])
def test_masks_learn_what_roi_align_makes_of_the_whole_picture(aligned, rles):
    rng = np.random.default_rng(0)
    dense = np.zeros((4, 61, 83), bool)
    dense[0, 5:30, 8:40] = rng.random((25, 32)) < 0.7
    dense[1, :, :] = rng.random((61, 83)) < 0.5  # to all edges
    dense[2, 40:, 70:] = True  # to two
    dense[3, 30, 30:33] = True  # three pixels
    masks = Masks.from_dense(dense)
    masks = Masks.from_rles(masks.rles(), masks.size) if rles else masks
    regions = torch.cat(
        [boxes(20, (61, 83), seed=10), torch.tensor([[0.0, 0, 83, 61], [60, 30, 83, 61], [29, 29, 34, 32]])]
    )
    rows = torch.arange(23) % 4
    rows[-1] = 3
    whole = torch.from_numpy(dense).float()[:, None]
    expected = roi_align(whole, torch.cat([rows[:, None].float(), regions], 1), 28, 1.0, -1, aligned)[:, 0]
    found = mask_aims(masks, rows, regions, 28, aligned=aligned, soft=True)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    hard = mask_aims(masks, rows, regions, 28, aligned=aligned, soft=False)
    assert ((hard == 1) == (expected >= 0.5)).float().mean() > 0.995
    assert hard[-1].sum() > 0 and set(hard.unique().tolist()) == {0, 1}


# ---- masks


@pytest.mark.parametrize("size", [(97, 131), (400, 300), (1, 5)])
def test_masks_are_pasted_as_torchvision_does(size):
    torch.manual_seed(0)
    rough = torch.rand(30, 1, 6, 6)
    maps = nn.functional.interpolate(rough, (28, 28), mode="bicubic").clamp(0, 1)
    own = boxes(30, size, least=0.2, seed=11)
    own[0] = torch.tensor([0.0, 0, size[1], size[0]])
    own[1] = torch.tensor([2.5, 0, 2.5, size[0]])
    expected = paste_masks_in_image(maps, own, size)[:, 0] > 0.5
    found = cut_boxes(maps[:, 0].numpy(), own.numpy(), size, whole_pixels=True)
    assert found.size == size
    np.testing.assert_array_equal(found.dense(), expected.numpy())


@pytest.mark.parametrize("size", [(97, 131), (400, 300), (1, 5)])
def test_masks_in_exact_boxes_are_those_of_grid_sample(size):
    torch.manual_seed(0)
    maps = nn.functional.interpolate(torch.rand(30, 1, 6, 6), (28, 28), mode="bicubic").clamp(0, 1)
    own = boxes(30, size, least=0.2, seed=12)
    own[0] = torch.tensor([0.0, 0, size[1], size[0]])
    y, x = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
    across = (x - own[:, :1]) / (own[:, 2:3] - own[:, :1]) * 2 - 1
    down = (y - own[:, 1:2]) / (own[:, 3:] - own[:, 1:2]) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), -1)
    expected = nn.functional.grid_sample(maps, grid, align_corners=False)[:, 0] >= 0.5
    found = cut_boxes(maps[:, 0].numpy(), own.numpy(), size).dense()
    assert (found != expected.numpy()).sum() <= 2  # that lie on a half but for rounding


def test_a_half_is_enough_in_exact_boxes_and_not_in_torchvisions():
    halves, box = np.full((1, 28, 28), 0.5, np.float32), np.array([[3, 4, 31, 32]], np.float32)
    assert cut_boxes(halves, box, (40, 40)).areas().tolist() == [28 * 28]
    assert cut_boxes(halves, box, (40, 40), whole_pixels=True).areas().tolist() == [0]


def test_boxes_without_area_or_outside_have_empty_masks():
    flat = np.array([[5, 5, 5, 9], [9, 9, 5, 5], [50, 50, 60, 60], [-20, -20, -5, -5]], np.float32)
    found = cut_boxes(np.ones((4, 28, 28), np.float32), flat, (20, 20))
    assert found.areas().tolist() == [0] * 4
    assert len(cut_boxes(np.zeros((0, 28, 28), np.float32), flat[:0], (20, 20), whole_pixels=True)) == 0
