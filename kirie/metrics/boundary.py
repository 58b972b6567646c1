"""Agreement of outlines: boundary F score, Boundary IoU, Hausdorff distance and average surface distance.

IoU hardly sees the outline of a large object; these numbers see nothing else. Masks are (H, W), bool or 0/1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.metrics.semantic import (
    PerClass,
    json_safe,
    label_pair,
    labels_of,
    mask_pair,
    mean_of_defined,
    quotient,
    unknown_ids,
)

Mask = npt.NDArray[np.bool_]
Spacing = float | tuple[float, float]

LARGEST_DISK = 16.0  # pixels; beyond this a distance map costs less than a dilation


def boundary_f(a: Any, b: Any, *, tolerance: float = 2.0, empty: float = 1.0) -> float:
    """Boundary F score of two masks, in [0, 1] (Csurka et al., BMVC 2013).

    The boundary is the mask pixels with one of their 4 neighbours outside the mask; the frame of the picture is no
    boundary. A boundary pixel is matched when a boundary pixel of the other mask lies within the tolerance; the score
    is the harmonic mean of the matched shares of both boundaries.

    Args:
        a: mask (H, W), bool or 0/1.
        b: mask (H, W).
        tolerance: Euclidean distance in pixels between pixel centres, >= 0.
        empty: the value for two masks that agree in having no boundary: both empty, or both filling the picture.

    Raises:
        KirieError: when shapes differ or are not (H, W), a mask holds other values, or the tolerance is negative.
    """
    a, b = _masks(a, b)
    edge_a, edge_b = edges(a) & a, edges(b) & b
    if not edge_a.any() and not edge_b.any():
        return empty if np.array_equal(a, b) else 0.0
    counts = _matched(edge_a, edge_b, _tolerated(tolerance))
    return float(_f_score(counts[None])[0])


def boundary_iou(a: Any, b: Any, *, dilation: float = 0.02, empty: float = 1.0) -> float:
    """Boundary IoU of two masks, in [0, 1] (Cheng et al., CVPR 2021).

    The IoU of two bands: the pixels of each mask within d of its outline, where d is `dilation` times the diagonal of
    the picture, rounded, at least 1 pixel, and the band is what d erosions by 3 x 3 remove. Outside the picture counts
    as outside the mask.

    Args:
        a: mask (H, W), bool or 0/1.
        b: mask (H, W).
        dilation: width of the band as a share of the diagonal; the paper uses 0.02.
        empty: the value for two empty masks.

    Raises:
        KirieError: when shapes differ or are not (H, W), or a mask holds other values.
    """
    a, b = _masks(a, b)
    width = max(1, round(dilation * float(np.hypot(*a.shape))))
    band_a, band_b = _band(a, width), _band(b, width)
    union = int(np.count_nonzero(band_a | band_b))
    return int(np.count_nonzero(band_a & band_b)) / union if union else empty


def hausdorff95(a: Any, b: Any, *, spacing: Spacing = 1.0) -> float:
    """The 95th percentile Hausdorff distance of two masks, >= 0, in the unit of `spacing`.

    For each mask the 95th percentile of the distances of its surface pixels to the surface of the other; the larger of
    the two. Surface pixels have one of their 4 neighbours outside the mask, and outside the picture is outside.

    Args:
        a: mask (H, W), bool or 0/1.
        b: mask (H, W).
        spacing: size of a pixel, one number or (y, x).

    Returns:
        0 for two empty masks, infinity when one is empty.

    Raises:
        KirieError: when shapes differ or are not (H, W), a mask holds other values, or a spacing is not positive.
    """
    return hausdorff(a, b, percent=95.0, spacing=spacing)


def hausdorff(a: Any, b: Any, *, percent: float = 100.0, spacing: Spacing = 1.0) -> float:
    """As `hausdorff95` for any percentile; 100 gives the Hausdorff distance itself."""
    forth, back = _surface_distances(a, b, spacing)
    if not forth.size or not back.size:
        return float("inf") if forth.size or back.size else 0.0
    return float(max(np.percentile(forth, percent), np.percentile(back, percent)))


def average_surface_distance(a: Any, b: Any, *, spacing: Spacing = 1.0) -> float:
    """The average symmetric surface distance of two masks, >= 0, in the unit of `spacing`.

    The sum of the distances of all surface pixels of both masks to the other surface, divided by their number.
    Surfaces, arguments, empty masks and errors as for `hausdorff95`.
    """
    distances = np.concatenate(_surface_distances(a, b, spacing))
    return float(distances.mean()) if distances.size else 0.0


def edges(labels: npt.NDArray[Any], known: Mask | None = None) -> Mask:
    """The pixels (H, W) with one of their 4 neighbours of another label.

    Only pairs of pixels where both are `known` count, and the frame of the picture makes no edge: an outline is where
    two regions are seen to meet.
    """
    known = np.ones(labels.shape, bool) if known is None else known
    found = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = (labels[first] != labels[second]) & known[first] & known[second]
        found[first] |= differ
        found[second] |= differ
    return found


def _masks(a: Any, b: Any) -> tuple[Mask, Mask]:
    xp, a, b = mask_pair(a, b)
    if a.ndim != 2:
        raise KirieError(f"Outlines are compared picture by picture: expected masks (H, W), got {tuple(a.shape)}.")
    return (a, b) if xp is np else (a.cpu().numpy(), b.cpu().numpy())


def _tolerated(tolerance: float) -> float:
    if not tolerance >= 0:
        raise KirieError(f"The tolerance is a distance in pixels, 0 or more; got {tolerance}.")
    return float(tolerance)


def _matched(edge_a: Mask, edge_b: Mask, tolerance: float) -> npt.NDArray[np.int64]:
    """(4,) counts: matched and all edge pixels of a, matched and all of b."""
    matched_a, matched_b = edge_a & _near(edge_b, tolerance), edge_b & _near(edge_a, tolerance)
    return np.array([np.count_nonzero(x) for x in (matched_a, edge_a, matched_b, edge_b)], np.int64)


def _near(edge: Mask, tolerance: float) -> Mask:
    """The pixels within the tolerance of an edge pixel."""
    if not edge.any():
        return edge
    if tolerance > LARGEST_DISK:
        close: Mask = ndimage.distance_transform_edt(~edge) <= tolerance
        return close
    reach = np.arange(-int(tolerance), int(tolerance) + 1)
    disk = (np.hypot(reach[:, None], reach[None]) <= tolerance).astype(np.uint8)
    return np.asarray(cv2.dilate(edge.view(np.uint8), disk), bool)


def _f_score(counts: npt.NDArray[np.int64]) -> PerClass:
    """(K,) F scores of (K, 4) counts: NaN where neither side has an edge, 0 where one has or nothing matches."""
    precision, recall = quotient(counts[:, 0], counts[:, 1]), quotient(counts[:, 2], counts[:, 3])
    total = np.nan_to_num(precision) + np.nan_to_num(recall)
    both = np.nan_to_num(2 * precision * recall)
    score = np.divide(both, total, out=np.zeros_like(total), where=total > 0)
    return np.where((counts[:, 1] + counts[:, 3]) > 0, score, np.nan)


def _band(mask: Mask, width: int) -> Mask:
    eroded = cv2.erode(
        mask.astype(np.uint8),
        np.ones((3, 3), np.uint8),
        iterations=width,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0, 0),
    )
    inner: Mask = np.asarray(eroded, bool)
    return mask & ~inner


def _surface_distances(a: Any, b: Any, spacing: Spacing) -> tuple[PerClass, PerClass]:
    """The distances of a's surface pixels to b's surface, and of b's to a's; infinite where the other is empty."""
    steps = np.asarray(spacing, np.float64)
    if steps.shape not in ((), (2,)) or not (steps > 0).all():
        raise KirieError(f"The spacing is the size of a pixel, one number or (y, x), above 0; got {spacing}.")
    a, b = _masks(a, b)
    surface_a, surface_b = edges(np.pad(a, 1))[1:-1, 1:-1] & a, edges(np.pad(b, 1))[1:-1, 1:-1] & b
    if not surface_a.any() or not surface_b.any():
        # An empty mask has no surface, and what the other has of one is infinitely far from it.
        return np.full(np.count_nonzero(surface_a), np.inf), np.full(np.count_nonzero(surface_b), np.inf)
    # All that is needed lies in the box around both.
    left, top, width, height = cv2.boundingRect((surface_a | surface_b).view(np.uint8))
    window = np.s_[top : top + height, left : left + width]
    surface_a, surface_b = surface_a[window], surface_b[window]
    to_b = ndimage.distance_transform_edt(~surface_b, sampling=steps.tolist())[surface_a]
    to_a = ndimage.distance_transform_edt(~surface_a, sampling=steps.tolist())[surface_b]
    return to_b, to_a


@dataclass(frozen=True, eq=False)
class BoundaryReport:
    """Boundary F scores of a data set, divided once from the counts over all pictures.

    Attributes:
        classes: the K classes.
        counts: (K, 4) int64: matched and all boundary pixels of the result, matched and all of the truth.
        tolerance: the distance in pixels within which boundaries match.
    """

    classes: Classes
    counts: npt.NDArray[np.int64]
    tolerance: float

    @cached_property
    def f(self) -> PerClass:
        """(K,) boundary F score; NaN for a class without boundary in truth and result, 0 for one only in one."""
        return _f_score(self.counts)

    @property
    def precision(self) -> PerClass:
        """(K,) share of the result's boundary that is matched; NaN without any."""
        return quotient(self.counts[:, 0], self.counts[:, 1])

    @property
    def recall(self) -> PerClass:
        """(K,) share of the truth's boundary that is matched; NaN without any."""
        return quotient(self.counts[:, 2], self.counts[:, 3])

    @property
    def mean_f(self) -> float:
        """Mean of the F scores over the classes with a boundary in truth or result; NaN without any."""
        return mean_of_defined(self.f)

    @property
    def score(self) -> float:
        """The number that training keeps the best of: `mean_f`."""
        return self.mean_f

    @property
    def classes_counted(self) -> int:
        """How many classes entered `mean_f`."""
        return int(np.count_nonzero(~np.isnan(self.f)))

    @property
    def convention(self) -> str:
        """How `mean_f` was made, in one sentence."""
        return (
            f"Boundary pixels within {self.tolerance:g} pixels (Euclidean) of the other boundary of their class match; "
            "matched and all boundary pixels are summed over all pictures and divided once; boundaries against void "
            "truth and the frame of the picture are left out; a class without boundary in truth and result is left "
            f"out of the mean; mean over {self.classes_counted} of {len(self.classes)} classes."
        )

    def rows(self) -> list[dict[str, Any]]:
        """One dict per class for a table: class, f, precision, recall (float, NaN where undefined), pixels."""
        return [
            {
                "class": name,
                "f": float(self.f[k]),
                "precision": float(self.precision[k]),
                "recall": float(self.recall[k]),
                "truth_pixels": int(self.counts[k, 3]),
                "result_pixels": int(self.counts[k, 1]),
            }
            for k, name in enumerate(self.classes.names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All scores and the rows as plain JSON values; None where a score is undefined."""
        names = ("mean_f", "tolerance", "classes_counted", "convention")
        plain: dict[str, Any] = json_safe({name: getattr(self, name) for name in names} | {"per_class": self.rows()})
        return plain


class BoundaryMetric:
    """Collects the boundary counts of a data set.

    Attributes:
        classes: the K classes.
        tolerance: distance in pixels within which boundaries match.
        counts: (K, 4) int64, all there is of state: the counts of several processes may simply be added.
    """

    def __init__(self, classes: Classes, tolerance: float = 2.0) -> None:
        self.classes = classes
        self.tolerance = _tolerated(tolerance)
        self.counts = np.zeros((len(classes), 4), np.int64)

    def update(self, result: Any, truth: Any) -> None:
        """Adds one picture (H, W) or a batch (B, H, W): SemanticMaps, or label arrays or tensors of one shape.

        Raises:
            KirieError: when shapes differ or are not (H, W) or (B, H, W), the truth holds ids that are neither a
                class nor void, or a map has other classes.
        """
        xp, result, truth = label_pair(labels_of(result, self.classes), labels_of(truth, self.classes))
        if xp is not np:
            result, truth = result.cpu().numpy(), truth.cpu().numpy()
        if truth.ndim not in (2, 3):
            raise KirieError(f"Expected label maps (H, W) or (B, H, W), got {truth.shape}.")
        void = self.classes.void
        if (((truth < 0) | (truth >= len(self.classes))) & (truth != void)).any():
            raise unknown_ids(truth, len(self.classes), void)
        one = (-1, *truth.shape[-2:])
        for picture, its_truth in zip(result.reshape(one), truth.reshape(one), strict=True):
            self._add(picture, its_truth, its_truth != void)

    def _add(self, result: npt.NDArray[Any], truth: npt.NDArray[Any], known: Mask) -> None:
        result_edges, truth_edges = edges(result, known), edges(truth, known)
        present = np.union1d(result[result_edges], truth[truth_edges])
        for k in present[(present >= 0) & (present < len(self.classes))]:
            counts = _matched(result_edges & (result == k), truth_edges & (truth == k), self.tolerance)
            self.counts[int(k)] += counts

    def merge(self, other: BoundaryMetric) -> None:
        """Adds what another metric for the same classes and tolerance has collected.

        Raises:
            KirieError: when the classes or the tolerances differ.
        """
        if other.classes.names != self.classes.names or other.tolerance != self.tolerance:
            raise KirieError("Only metrics for the same classes and the same tolerance can be merged.")
        self.counts += other.counts

    def compute(self) -> BoundaryReport:
        """The report on everything collected so far; the metric may go on collecting."""
        return BoundaryReport(self.classes, self.counts.copy(), self.tolerance)
