"""Panoptic quality: agreement of panoptic maps in segments that are matched within their class.

The definitions are those of Kirillov et al., "Panoptic Segmentation", CVPR 2019 (arXiv 1801.00868), and of panopticapi,
the public tool of COCO's challenge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.errors import KirieError, counted
from kirie.metrics.semantic import PerClass, json_safe, mean_of_defined, quotient
from kirie.results import PanopticMap

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PanopticReport:
    """Scores of the segments in a data set.

    Attributes:
        classes: the K classes.
        counts: (3, K) int64, the TP, FP and FN of each class over all pictures.
        ious: (K,) float64, the sum of the IoUs of the TP of each class.
    """

    classes: Classes
    counts: Counts
    ious: PerClass

    @property
    def tp(self) -> Counts:
        """(K,) pairs of a result segment and the truth segment that it is matched with."""
        return np.asarray(self.counts[0])

    @property
    def fp(self) -> Counts:
        """(K,) result segments that are matched with nothing and count as wrong."""
        return np.asarray(self.counts[1])

    @property
    def fn(self) -> Counts:
        """(K,) truth segments that are matched with nothing, crowds left out."""
        return np.asarray(self.counts[2])

    @property
    def _weight(self) -> PerClass:
        return np.asarray(self.tp + self.fp / 2 + self.fn / 2)

    @cached_property
    def pq(self) -> PerClass:
        """(K,) panoptic quality, SQ x RQ; NaN for a class of which nothing was counted."""
        return quotient(self.ious, self._weight)

    @cached_property
    def sq(self) -> PerClass:
        """(K,) mean IoU of the TP; 0 for a class that has none, NaN for one of which nothing was counted."""
        return np.where(self._weight > 0, self.ious / np.maximum(self.tp, 1), np.nan)

    @cached_property
    def rq(self) -> PerClass:
        """(K,) TP / (TP + FP/2 + FN/2), the F1 score; NaN for a class of which nothing was counted."""
        return quotient(self.tp, self._weight)

    @property
    def score(self) -> float:
        """The number that training keeps the best of: the mean of the PQ over the classes counted."""
        return mean_of_defined(self.pq)

    @cached_property
    def means(self) -> dict[str, float]:
        """The mean PQ, SQ and RQ over the classes counted: `pq`, `sq`, `rq`, of things `pq_things`..., of stuff."""
        things = np.array(self.classes.things, bool)
        groups = {"": np.ones(len(things), bool), "_things": things, "_stuff": ~things}
        return {
            f"{name}{group}": mean_of_defined(getattr(self, name)[rows])
            for group, rows in groups.items()
            for name in ("pq", "sq", "rq")
        }

    def classes_counted(self, *, things: bool | None = None) -> int:
        """How many classes entered the means: of all, or of the things or the stuff alone."""
        wanted = [things is None or thing == things for thing in self.classes.things]
        return int(np.count_nonzero(~np.isnan(self.pq) & np.array(wanted)))

    @property
    def convention(self) -> str:
        """How the numbers were made, in a few sentences."""
        told = (
            "PQ, SQ and RQ are panopticapi's: a segment of the result is matched with one of the truth of its class "
            "where their IoU is above 0.50, pixels of the result that are void in the truth left out. Counts are added "
            "over all pictures; PQ = sum of the IoUs of matches / (TP + FP/2 + FN/2) per class. Crowds are not to be "
            "found, and a segment without a match is no FP where more than half of it lies in void or in crowds of its "
            f"class. A class without TP, FP and FN is left out of the mean; mean over {self.classes_counted()} of "
            f"{counted(len(self.classes), 'class', 'classes')}."
        )
        return told if self.counts.any() else f"{told} Neither truth nor result has a segment: nothing can be scored."

    def headline(self) -> tuple[tuple[str, float, str], ...]:
        """The name, the value and a note on each of the few numbers to look at, the most important first."""
        means, kinds = self.means, []
        for kind, things in (("things", True), ("stuff", False)):
            if things in self.classes.things:
                number = counted(self.classes_counted(things=things), "class", "classes")
                kinds.append((f"PQ of {kind}", means[f"pq_{kind}"], f"mean over {number}"))
        return (
            ("PQ", means["pq"], f"mean over {counted(self.classes_counted(), 'class', 'classes')}"),
            *kinds,
            ("SQ", means["sq"], "how well matched segments fit: their mean IoU"),
            ("RQ", means["rq"], "how many segments are found, and how few are false: F1"),
        )

    def history_row(self) -> dict[str, float]:
        """The few scores that a training writes down at each measurement, `score` first."""
        return {name: self.means[name] for name in ("pq", "sq", "rq", "pq_things", "pq_stuff")}

    def rows(self) -> list[dict[str, Any]]:
        """One dict per class for a table: class, kind, pq, sq, rq (float, NaN where undefined), tp, fp, fn."""
        return [
            {
                "class": name,
                "kind": "thing" if self.classes.things[k] else "stuff",
                **{key: float(getattr(self, key)[k]) for key in ("pq", "sq", "rq")},
                **dict(zip(("tp", "fp", "fn"), self.counts[:, k].tolist(), strict=True)),
            }
            for k, name in enumerate(self.classes.names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All scores and the rows as plain JSON values; None where a score is undefined."""
        numbers = {
            "classes_counted": self.classes_counted(),
            "things_counted": self.classes_counted(things=True),
            "stuff_counted": self.classes_counted(things=False),
        }
        values = {**self.means, **numbers, "convention": self.convention, "per_class": self.rows()}
        plain: dict[str, Any] = json_safe(values)
        return plain


class PanopticMetric:
    """Collects the matches of a data set.

    Attributes:
        classes: the K classes.
        counts: (3, K) int64, the TP, FP and FN of each class,
        ious: (K,) float64, the sum of the IoUs of its TP: all there is of state, which may simply be added.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.counts: Counts = np.zeros((3, len(classes)), np.int64)
        self.ious: PerClass = np.zeros(len(classes))

    def update(self, result: PanopticMap, truth: PanopticMap) -> None:
        """Adds one picture.

        Raises:
            KirieError: when sizes differ, or classes are not those of the metric.
        """
        if result.size != truth.size:
            raise KirieError(
                f"The result has size {result.size} (H, W) and the truth {truth.size}; compare like with like."
            )
        for segments in (result, truth):
            if segments.classes.names != self.classes.names:
                raise KirieError(
                    f"Segments of the classes {list(segments.classes.names)} cannot be scored by a metric for "
                    f"{list(self.classes.names)}: the ids would mean different things. Build both with one Classes."
                )
        counts, ious = _count(result, truth, len(self.classes))
        self.counts += counts
        self.ious += ious

    def merge(self, other: PanopticMetric) -> None:
        """Adds what another metric for the same classes has collected.

        Raises:
            KirieError: when the classes differ.
        """
        if other.classes.names != self.classes.names:
            raise KirieError("Only metrics for the same classes can be merged.")
        self.counts += other.counts
        self.ious += other.ious

    def quick_score(self) -> float:
        """The mean PQ of what was collected; NaN without any."""
        return self.compute().score

    def compute(self) -> PanopticReport:
        """The report on everything collected so far; the metric may go on collecting."""
        return PanopticReport(self.classes, self.counts.copy(), self.ious.copy())


class _Segments(NamedTuple):
    """The segments of a map by ascending id, S with void as the first: its id is 0 and its label -1."""

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    areas: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, panoptic: PanopticMap) -> _Segments:
        segments = sorted(panoptic.segments, key=lambda segment: segment.id)
        numbers = [(0, -1, 0, False), *((each.id, each.label, each.area, each.crowd) for each in segments)]
        ids, labels, areas, crowd = np.array(numbers, np.int64).T
        return cls(ids, labels, areas, crowd.astype(bool))


def _count(result: PanopticMap, truth: PanopticMap, classes: int) -> tuple[Counts, PerClass]:
    """The counts (3, K) and the sums of IoUs (K,) of one picture."""
    found, there = _Segments.of(result), _Segments.of(truth)
    found_ids, there_ids, pixels = shared_pixels(result.ids, truth.ids)
    rows, columns = np.searchsorted(found.ids, found_ids), np.searchsorted(there.ids, there_ids)  # (P,) of segments
    alike = (found.labels[rows] == there.labels[columns]) & (rows > 0)
    crowd, void = alike & there.crowd[columns], columns == 0
    in_void, aside = (np.zeros(len(found.ids), np.int64) for _ in range(2))
    np.add.at(in_void, rows[void], pixels[void])
    # panopticapi looks into one crowd of a class, the last; a picture that has several is to be no harder for it.
    np.add.at(aside, rows[void | crowd], pixels[void | crowd])

    union = found.areas[rows] + there.areas[columns] - pixels - in_void[rows]
    match = alike & ~crowd & (2 * pixels > union)
    labels = found.labels[rows[match]]
    false = 2 * aside <= found.areas
    false[rows[match]] = False
    missed = ~there.crowd
    missed[columns[match]] = False
    kinds = (labels, found.labels[1:][false[1:]], there.labels[1:][missed[1:]])
    counts = np.stack([np.bincount(each, minlength=classes) for each in kinds])
    ious = np.bincount(labels, pixels[match] / union[match], minlength=classes)
    return counts.astype(np.int64), ious.astype(np.float64)


def shared_pixels(
    a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The P pairs of ids that occur together in two id maps (H, W): their ids in `a` and `b`, and their pixels.

    Pairs are sorted once per run of equal pixels along the rows, not once per pixel, so that what a map costs hardly
    depends on how large its ids are or how many.
    """
    a, b = a.ravel(), b.ravel()
    starts_run = np.ones(a.size, bool)
    np.not_equal(a[1:], a[:-1], out=starts_run[1:])
    starts_run[1:] |= b[1:] != b[:-1]
    starts = np.flatnonzero(starts_run)
    pairs, run = np.unique(a[starts].astype(np.int64) << 32 | b[starts], return_inverse=True)
    pixels = np.bincount(run, np.diff(starts, append=a.size))  # float64, exact up to 2**53
    return pairs >> 32, pairs & 0xFFFFFFFF, pixels.astype(np.int64)
