"""Objects found, missed and made up: one-to-one matches of results with truths, counted as StarDist counts them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kirie.matches import Overlaps, matched, overlaps
from kirie.metrics.semantic import PerClass, Table, quotient
from kirie.results import Instances

IOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)


@dataclass(frozen=True, eq=False)
class Matching:
    """Counts of objects over a data set and the scores that follow from them, per IoU threshold.

    Arrays are (T, K) for the T thresholds of `IOUS` and K classes, or (T,). A truth that is matched with a result is
    found (TP), any other missed (FN); a result without a match is false (FP). The scores are those of StarDist's
    `matching_dataset` (Schmidt et al., MICCAI 2018; Weigert et al., WACV 2020): counts are added over all pictures and
    divided once. Where there is nothing to divide by they are NaN, and StarDist's 0.

    Attributes:
        counts: (T, ..., 3) int64 TP, FP and FN.
        overlaps: (T, ...) float64 sums of the IoUs of the matches.
    """

    counts: Table
    overlaps: Overlaps

    @classmethod
    def none(cls, groups: int) -> Matching:
        """Nothing counted yet, for `groups` classes."""
        return cls(np.zeros((len(IOUS), groups, 3), np.int64), np.zeros((len(IOUS), groups)))

    @classmethod
    def of(cls, result: Instances, truth: Instances, *, within_class: bool) -> Matching:
        """The matches of one picture.

        Args:
            result: what was found.
            truth: what is there.
            within_class: whether a result is matched with a truth of its own class only, which gives arrays (T, K);
                otherwise classes are ignored, as StarDist ignores them, and arrays are (T, 1).
        """
        table = overlaps(result, truth, within_class=within_class)
        of_results, of_truths = (
            each.labels if within_class else np.zeros_like(each.labels) for each in (result, truth)
        )
        groups = len(truth.classes) if within_class else 1
        out = cls.none(groups)
        for row, threshold in enumerate(IOUS):
            matches = matched(table, truth.crowd, threshold)
            found = of_results[matches.results]
            for column, members in enumerate((found, of_results[matches.false], of_truths[matches.missed])):
                out.counts[row, :, column] = np.bincount(members, minlength=groups)
            out.overlaps[row] = np.bincount(found, table[matches.results, matches.truths], minlength=groups)
        return out

    def __add__(self, other: Matching) -> Matching:
        return Matching(self.counts + other.counts, self.overlaps + other.overlaps)

    def together(self) -> Matching:
        """The counts of all classes added up, arrays of shape (T,)."""
        return Matching(self.counts.sum(1), self.overlaps.sum(1))

    @property
    def _parts(self) -> tuple[Table, Table, Table]:
        return self.counts[..., 0], self.counts[..., 1], self.counts[..., 2]

    @cached_property
    def accuracy(self) -> PerClass:
        """TP / (TP + FP + FN): the "average precision" of StarDist, Cellpose and the Data Science Bowl 2018."""
        return quotient(self._parts[0], self.counts.sum(-1))

    @cached_property
    def precision(self) -> PerClass:
        """TP / (TP + FP)."""
        found, false, _ = self._parts
        return quotient(found, found + false)

    @cached_property
    def recall(self) -> PerClass:
        """TP / (TP + FN)."""
        found, _, missed = self._parts
        return quotient(found, found + missed)

    @cached_property
    def f1(self) -> PerClass:
        """2 TP / (2 TP + FP + FN)."""
        found, false, missed = self._parts
        return quotient(2 * found, 2 * found + false + missed)

    @cached_property
    def mean_matched_score(self) -> PerClass:
        """Mean IoU of the matches."""
        return quotient(self.overlaps, self._parts[0])

    @cached_property
    def panoptic_quality(self) -> PerClass:
        """Sum of the IoUs of the matches / (TP + FP / 2 + FN / 2), which is F1 times `mean_matched_score`."""
        found, false, missed = self._parts
        return quotient(self.overlaps, found + false / 2 + missed / 2)
