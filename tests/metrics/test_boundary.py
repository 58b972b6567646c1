"""Outlines scored by kirie against scikit-image, SciPy, brute force over all pairs and hand-worked numbers."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist, directed_hausdorff
from skimage.metrics import hausdorff_distance
from skimage.segmentation import find_boundaries

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.metrics import BoundaryMetric, average_surface_distance, boundary_f, boundary_iou, hausdorff, hausdorff95
from kirie.metrics.boundary import edges
from kirie.results import SemanticMap

TWO = Classes(("background", "cell"))
THREE = Classes(("sea", "land", "ice"))
NONE, FULL = np.zeros((30, 30), bool), np.ones((30, 30), bool)


def blob(seed, size=(37, 53), share=0.5):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(size), 3)
    return noise > np.quantile(noise, 1 - share)


def square(top, left, side, size=(100, 100)):
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def surface(mask):
    """Surface pixels, outside the picture being outside the mask."""
    return mask & ~ndimage.binary_erosion(mask)


def all_distances(edge_a, edge_b, spacing=(1.0, 1.0)):
    a, b = (np.argwhere(e) * spacing for e in (edge_a, edge_b))
    table = cdist(a, b)
    return table.min(1), table.min(0)


def brute_f(edge_a, edge_b, tolerance):
    forth, back = all_distances(edge_a, edge_b)
    p, r = (forth <= tolerance).mean(), (back <= tolerance).mean()
    return 2 * p * r / (p + r) if p + r else 0.0


# --- boundary F


@pytest.mark.parametrize("seed", range(3))
def test_edges_equal_scikit_image(seed):
    mask = blob(seed)
    assert mask[0].any() and mask[:, -1].any()
    np.testing.assert_array_equal(edges(mask) & mask, find_boundaries(mask, connectivity=1, mode="inner"))
    labels = blob(seed).astype(np.uint8) + 2 * blob(seed + 10)
    np.testing.assert_array_equal(edges(labels), find_boundaries(labels, connectivity=1, mode="thick"))


@pytest.mark.parametrize("tolerance", [0, 1, math.sqrt(2), 2.0, math.sqrt(5), 3.7, math.sqrt(13), 16, 17, 20.5])
def test_boundary_f_equals_brute_force(tolerance):
    a, b = blob(1), blob(2)
    inner = [find_boundaries(m, connectivity=1, mode="inner") for m in (a, b)]
    assert boundary_f(a, b, tolerance=tolerance) == pytest.approx(brute_f(*inner, tolerance), abs=1e-12)


def test_boundary_f_by_hand():
    a, b = square(40, 40, 10), square(40, 43, 10)  # 36 boundary pixels each, b is 3 columns to the right
    assert boundary_f(a, a) == 1.0
    assert boundary_f(a, b, tolerance=3) == 1.0
    # Of a's 36: the rows on top and bottom share columns 43..49 (14); all else must lie within 2 of b's outline.
    # Columns 41 and 42 of both rows are near (4). Column 40 is 3 away. Of column 49, 8 pixels are not corners and
    # only rows 41, 42, 47, 48 are within 2 of a row of b (4).
    assert boundary_f(a, b, tolerance=2) == pytest.approx((14 + 4 + 4) / 36)


def test_boundary_f_without_boundaries():
    some = square(5, 5, 9, (30, 30))
    assert boundary_f(NONE, NONE) == boundary_f(FULL, FULL) == 1.0
    assert boundary_f(NONE, NONE, empty=0.5) == 0.5
    assert boundary_f(NONE, FULL) == boundary_f(FULL, NONE, empty=0.5) == 0.0
    for other in (NONE, FULL):
        assert boundary_f(some, other) == boundary_f(other, some) == 0.0


# --- Boundary IoU


@pytest.mark.parametrize(("dilation", "width"), [(0.02, 1), (0.05, 3), (0.1, 6), (0.0001, 1)])
def test_boundary_iou_equals_scipy(dilation, width):
    a, b = blob(3), blob(4)  # 37 x 53 has a diagonal of 64.6

    def band(mask):
        return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)

    expected = (band(a) & band(b)).sum() / (band(a) | band(b)).sum()
    assert boundary_iou(a, b, dilation=dilation) == pytest.approx(expected, abs=1e-12)


def test_boundary_iou_sees_what_iou_does_not():
    """At 100 x 100 the band is 3 wide: those of a square of 20 and of the 14 inside it do not meet."""
    assert boundary_iou(square(40, 40, 20), square(43, 43, 14)) == 0.0
    ring, wider = 20**2 - 14**2, 18**2 - 14**2
    assert boundary_iou(square(40, 40, 20), square(41, 41, 18)) == pytest.approx(wider / (ring + 14**2 - 12**2))


def test_boundary_iou_of_empty_and_full_masks():
    assert boundary_iou(NONE, NONE) == 1.0
    assert boundary_iou(NONE, NONE, empty=0.0) == 0.0
    assert boundary_iou(FULL, FULL, empty=0.0) == 1.0
    assert boundary_iou(FULL, NONE) == boundary_iou(NONE, FULL) == 0.0


# --- distances


@pytest.mark.parametrize("spacing", [1.0, 0.5, (2.0, 0.3)])
@pytest.mark.parametrize("seeds", [(1, 2), (3, 4), (5, 6)])
def test_distances_equal_brute_force(seeds, spacing):
    a, b = (blob(seed, share=0.2) for seed in seeds)
    steps = np.broadcast_to(spacing, 2)
    forth, back = all_distances(surface(a), surface(b), steps)
    expected = max(np.percentile(forth, 95), np.percentile(back, 95))
    assert hausdorff95(a, b, spacing=spacing) == pytest.approx(expected)
    assert hausdorff95(b, a, spacing=spacing) == pytest.approx(expected)
    mean = (forth.sum() + back.sum()) / (len(forth) + len(back))
    assert average_surface_distance(a, b, spacing=spacing) == pytest.approx(mean)
    points = [np.argwhere(surface(m)) * steps for m in (a, b)]
    full = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
    assert hausdorff(a, b, spacing=spacing) == pytest.approx(full)


def test_hausdorff_equals_scikit_image():
    a, b = blob(7, share=0.3), blob(8, share=0.3)
    assert hausdorff(a, b) == pytest.approx(hausdorff_distance(surface(a), surface(b)))


def test_distances_by_hand():
    a, b = square(10, 10, 1), square(13, 14, 1)
    assert hausdorff95(a, b) == average_surface_distance(a, b) == 5.0
    assert hausdorff95(a, b, spacing=2) == 10.0
    assert hausdorff95(a, b, spacing=(4, 1.25)) == 13.0
    assert hausdorff95(FULL, FULL) == average_surface_distance(FULL, FULL) == 0.0


@pytest.mark.parametrize("measure", [hausdorff95, average_surface_distance])
def test_distances_of_empty_masks(measure):
    assert measure(NONE, NONE) == 0.0
    assert measure(NONE, FULL) == measure(FULL, NONE) == math.inf


# --- input


@pytest.mark.parametrize("measure", [boundary_f, boundary_iou, hausdorff95, average_surface_distance])
def test_mask_kinds(measure):
    a, b = blob(1), blob(2)
    expected = measure(a, b)
    assert measure(a.astype(np.uint8), torch.from_numpy(b)) == expected
    assert measure(np.asfortranarray(a), b) == measure(a.T, b.T) == pytest.approx(expected)
    with pytest.raises(KirieError, match=r"\(H, W\), got \(1, 37, 53\)"):
        measure(a[None], b[None])
    with pytest.raises(KirieError, match="same shape"):
        measure(a, b[:5])
    with pytest.raises(KirieError, match="0 and 1"):
        measure(a, b.astype(np.uint8) * 255)


def test_numbers_that_are_refused():
    a = blob(1)
    with pytest.raises(KirieError, match="tolerance is a distance"):
        boundary_f(a, a, tolerance=-1)
    with pytest.raises(KirieError, match="tolerance is a distance"):
        BoundaryMetric(TWO, tolerance=math.nan)
    for spacing in (0, (1, -1), (1, 1, 1)):
        with pytest.raises(KirieError, match="spacing is the size of a pixel"):
            hausdorff95(a, a, spacing=spacing)


# --- a data set


def maps(seed, size=(37, 53)):
    """Three classes in regions, and void along an irregular part of the truth."""
    labels = [blob(s, size).astype(np.uint8) + blob(s + 50, size, 0.3) for s in (seed, seed + 1)]
    labels[1][blob(seed + 70, size, 0.15)] = 255
    return labels


def loop_edges(labels, known, k):
    """Pixels of class k with a known 4-neighbour of another label, one pixel at a time."""
    found = np.zeros(labels.shape, bool)
    for y, x in np.argwhere((labels == k) & known):
        for j, i in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= j < labels.shape[0] and 0 <= i < labels.shape[1]
            found[y, x] |= inside and known[j, i] and labels[j, i] != k
    return found


@pytest.mark.parametrize("tolerance", [1.5, 20.0])
def test_metric_equals_a_plain_loop(tolerance):
    metric = BoundaryMetric(THREE, tolerance)
    expected = np.zeros((3, 4), np.int64)
    for seed in (0, 10):
        result, truth = maps(seed)
        result[3:6, 3:9] = 255  # a result may have pixels without a class
        metric.update(result, truth)
        for k in range(3):
            sides = [loop_edges(labels, truth != 255, k) for labels in (result, truth)]
            forth, back = all_distances(*sides)
            expected[k] += [(forth <= tolerance).sum(), len(forth), (back <= tolerance).sum(), len(back)]
    np.testing.assert_array_equal(metric.counts, expected)
    report = metric.compute()
    precision, recall = expected[:, 0] / expected[:, 1], expected[:, 2] / expected[:, 3]
    np.testing.assert_allclose(report.precision, precision)
    np.testing.assert_allclose(report.recall, recall)
    np.testing.assert_allclose(report.f, 2 * precision * recall / (precision + recall))
    assert report.mean_f == report.score == pytest.approx(report.f.mean())


def test_metric_of_one_picture_equals_boundary_f():
    a, b = blob(1), blob(2)
    metric = BoundaryMetric(TWO)
    metric.update(a, SemanticMap(b.astype(np.uint8), TWO))
    report = metric.compute()
    assert report.f[1] == pytest.approx(boundary_f(a, b))
    assert report.f[0] == pytest.approx(boundary_f(~a, ~b))


def test_parts_batches_and_tensors_add_up():
    pairs = [maps(seed) for seed in (0, 10, 20)]
    whole, left, right = (BoundaryMetric(THREE) for _ in range(3))
    whole.update(np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs]))
    left.update(*(torch.from_numpy(x).long() for x in pairs[0]))
    for pair in pairs[1:]:
        right.update(*pair)
    left.merge(right)
    np.testing.assert_array_equal(left.counts, whole.counts)
    assert whole.counts.min() > 0
    for other in (BoundaryMetric(TWO), BoundaryMetric(THREE, 3)):
        with pytest.raises(KirieError, match="same classes and the same tolerance"):
            left.merge(other)


def test_void_and_the_frame_make_no_boundary():
    truth = np.zeros((20, 20), np.uint8)
    truth[:, 8:12] = 255
    truth[:, 12:] = 1
    metric = BoundaryMetric(THREE)
    metric.update(np.where(truth == 255, 2, truth), truth)
    report = metric.compute()
    assert not metric.counts.any()
    assert math.isnan(report.mean_f)
    assert report.classes_counted == 0
    metric.update(np.zeros((20, 20), np.uint8), np.repeat([0, 1], 10)[None].repeat(20, 0))
    assert metric.counts.tolist() == [[0, 0, 0, 20], [0, 0, 0, 20], [0, 0, 0, 0]]
    report = metric.compute()
    np.testing.assert_array_equal(report.f, [0, 0, np.nan])
    assert report.mean_f == 0.0
    assert "mean over 2 of 3 classes" in report.convention
    assert "within 2 pixels" in report.convention
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["per_class"][2] == {
        "class": "ice", "f": None, "precision": None, "recall": None, "truth_pixels": 0, "result_pixels": 0,
    }  # fmt: skip


def test_maps_that_are_refused():
    metric = BoundaryMetric(THREE)
    with pytest.raises(KirieError, match=r"7 \(2 pixels\)"):
        metric.update(np.zeros((2, 2), int), np.array([[0, 7], [7, 255]]))
    with pytest.raises(KirieError, match=r"got \(5,\)"):
        metric.update(np.zeros(5, int), np.zeros(5, int))
    with pytest.raises(KirieError, match="mean different things"):
        metric.update(SemanticMap(np.zeros((2, 2), np.uint8), TWO), np.zeros((2, 2), int))
    assert not metric.counts.any()
