"""Agreement of objects: COCO's AP and AR of masks and boxes, StarDist's matching scores, and errors of counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco_mask

from kirie.classes import Classes
from kirie.errors import KirieError, counted
from kirie.masks import Masks
from kirie.metrics.average_precision import AveragePrecision, Picture, average_precision
from kirie.metrics.matching import IOUS, Matching
from kirie.metrics.semantic import json_safe
from kirie.results import Instances

_MATCHING = ("matching_accuracy", "precision", "recall", "f1", "mean_matched_score", "panoptic_quality")


@dataclass(frozen=True, eq=False)
class Counting:
    """How many objects were found in each picture, and how many there are.

    Attributes:
        found: (P,) int64 results of each picture.
        there: (P,) int64 objects of its truth.
    """

    found: npt.NDArray[np.int64]
    there: npt.NDArray[np.int64]

    @property
    def mean_absolute(self) -> float:
        """Mean of |found - there| over the pictures; NaN without any."""
        return _mean(np.abs(self.found - self.there))

    @property
    def mean_relative(self) -> float:
        """Mean of |found - there| / there over the pictures that have an object; NaN without any."""
        some = self.there > 0
        return _mean(np.abs(self.found - self.there)[some] / self.there[some])

    @property
    def bias(self) -> float:
        """Mean of found - there over the pictures: above 0 where too much is found; NaN without any."""
        return _mean(self.found - self.there)

    def to_dict(self) -> dict[str, Any]:
        """The three errors, and how many pictures they are means of."""
        names = ("mean_absolute", "mean_relative", "bias")
        return {"pictures": len(self.found), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, eq=False)
class InstanceReport:
    """Scores of the objects in a data set.

    Attributes:
        classes: the K classes.
        masks: COCO's numbers of the masks.
        boxes: COCO's numbers of the boxes.
        matching: scores of all objects whatever their class, arrays (T,) over the IoU thresholds `matching.IOUS`.
        matching_by_class: scores of matches within each class, arrays (T, K).
        counting: errors in the number of objects, whatever their class.
        threshold: the score from which on results enter all but COCO's numbers.
        max_detections: the most results of a class that enter COCO's numbers in a picture.
        pictures: how many were measured.
        crowded: how many of them hold more objects of a class than `max_detections`.
        results: how many results there are, of any score.
    """

    classes: Classes
    masks: AveragePrecision
    boxes: AveragePrecision
    matching: Matching
    matching_by_class: Matching
    counting: Counting
    threshold: float
    max_detections: int
    pictures: int
    crowded: int
    results: int

    @property
    def score(self) -> float:
        """The number that training keeps the best of: AP of the masks."""
        return self.masks.ap

    @cached_property
    def objects(self) -> npt.NDArray[np.int64]:
        """(K,) objects of each class in the truth, crowds left out."""
        return np.asarray(self.matching_by_class.counts[0, :, [0, 2]].sum(0))

    @cached_property
    def classes_counted(self) -> int:
        """How many classes have an object in the truth, and so entered the means of COCO's numbers."""
        return int(np.count_nonzero(self.objects))

    @property
    def convention(self) -> str:
        """How the numbers were made, and what stands in the way of a fair number, in a few sentences."""
        parts = [
            f"AP and AR are COCO's: means over IoU 0.50 to 0.95 and over the {self.classes_counted} of "
            f"{counted(len(self.classes), 'class', 'classes')} with objects in the truth, from the "
            f"{counted(self.max_detections, 'result')} of each class in a picture with the highest scores, low ones "
            "included; sizes are those of the truth's areas (small to 32 x 32 pixels, large from 96 x 96).",
            f"All else is counted on results with a score of {self.threshold:.2f} or more, matched one to one with "
            "objects for the most pairs at an IoU threshold, as StarDist does; counts are added over all pictures and "
            "divided once. In the rows of classes matches are within the class, elsewhere classes are ignored.",
            "Crowds are not to be found, what is found in them is not wrong, and pictures with them are not in the "
            "errors of counting.",
        ]
        if not self.objects.any():
            parts.append("The truth holds no object, so that nothing can be scored.")
        elif not self.results:
            parts.append("The model found no object at all.")
        if self.crowded:
            hold = "holds" if self.crowded == 1 else "hold"
            parts.append(
                f"{counted(self.crowded, 'picture')} {hold} more than {self.max_detections:,} objects of a class, of "
                "which AR and AP can count no more: see `max_detections`."
            )
        return " ".join(parts)

    def headline(self) -> tuple[tuple[str, float, str], ...]:
        """The name, the value and a note on each of the few numbers to look at, the most important first."""
        masks, half, by_size = self.masks.to_dict(), self.matching, []
        for size in ("small", "medium", "large"):
            if not np.isnan(masks[f"ap_{size}"]):
                by_size.append(f"{size} {masks[f'ap_{size}']:.4f}")
        shown = f"at IoU 0.50, results from score {self.threshold:.2f}, classes ignored"
        return (
            ("AP", self.masks.ap, f"of masks, IoU 0.50 to 0.95; {', '.join(by_size)}" if by_size else "of masks"),
            ("AP50", self.masks.ap50, "of masks, IoU 0.50"),
            ("AP75", self.masks.ap75, "of masks, IoU 0.75"),
            ("box AP", self.boxes.ap, "IoU 0.50 to 0.95"),
            ("matching accuracy", float(half.accuracy[0]), f"TP / (TP + FP + FN) {shown}"),
            ("panoptic quality", float(half.panoptic_quality[0]), f"F1 x mean IoU of matches {shown}"),
            ("error of counting", self.counting.mean_absolute, self._counting_in_words()),
        )

    def _counting_in_words(self) -> str:
        relative, bias = self.counting.mean_relative, self.counting.bias
        share = "" if np.isnan(relative) else f", {relative:.1%} of what is there"
        return f"objects per picture{share}" + ("" if np.isnan(bias) else f"; on average {bias:+.2f}")

    def history_row(self) -> dict[str, float]:
        """The few scores that a training writes down at each measurement, `score` first."""
        return {
            "ap": self.masks.ap,
            "ap50": self.masks.ap50,
            "ap75": self.masks.ap75,
            "box_ap": self.boxes.ap,
            "matching_accuracy": float(self.matching.accuracy[0]),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per class for a table: AP of masks and boxes, matching scores at IoU 0.50 (NaN where undefined)."""
        columns = {
            "ap": self.masks.ap_of(),
            "ap50": self.masks.ap_of(0.5),
            "ap75": self.masks.ap_of(0.75),
            "box_ap": self.boxes.ap_of(),
            **{name: values[0] for name, values in _scores(self.matching_by_class).items()},
        }
        results = self.matching_by_class.counts[0, :, :2].sum(1)
        return [
            {
                "class": name,
                **{key: float(values[k]) for key, values in columns.items()},
                "objects": int(self.objects[k]),
                "results": int(results[k]),
            }
            for k, name in enumerate(self.classes.names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All scores and the rows as plain JSON values; None where a score is undefined."""
        at = [
            {"iou": iou, **dict(zip(("tp", "fp", "fn"), self.matching.counts[row].tolist(), strict=True))}
            | {key: float(values[row]) for key, values in _scores(self.matching).items()}
            for row, iou in enumerate(IOUS)
        ]
        names = ("threshold", "max_detections", "crowded", "classes_counted", "convention")
        values = {
            **self.masks.to_dict(),
            "boxes": self.boxes.to_dict(),
            "matching": at,
            "counting": self.counting.to_dict(),
            **{name: getattr(self, name) for name in names},
            "per_class": self.rows(),
        }
        plain: dict[str, Any] = json_safe(values)
        return plain


class InstanceMetric:
    """Collects results and truths of a data set; all that is kept of a mask are its run lengths.

    Args:
        classes: the K classes.
        threshold: the score from which on results are worth showing, and enter the matching scores and the errors of
            counting; COCO's numbers take results of any score.
        max_detections: the most results of a class that enter COCO's numbers in a picture; 100 is COCO's. Pictures
            with more objects than that need more, and a model that gives as many.

    Raises:
        KirieError: when the threshold is outside 0..1 or `max_detections` is below 1.
    """

    def __init__(self, classes: Classes, *, threshold: float = 0.5, max_detections: int = 100) -> None:
        if not 0 <= threshold <= 1:
            raise KirieError(f"The threshold is a score from 0 to 1, got {threshold}.")
        if max_detections < 1:
            raise KirieError(f"At least 1 result must count in a picture, got max_detections = {max_detections}.")
        self.classes, self.threshold, self.max_detections = classes, float(threshold), int(max_detections)
        self.pictures: list[Picture] = []
        self.matching = Matching.none(1)
        self.matching_by_class = Matching.none(len(classes))

    def update(self, result: Instances, truth: Instances) -> None:
        """Adds one picture.

        Raises:
            KirieError: when sizes differ, or classes are not those of the metric.
        """
        if result.size != truth.size:
            raise KirieError(
                f"The result has size {result.size} (H, W) and the truth {truth.size}; compare like with like."
            )
        for objects in (result, truth):
            if objects.classes.names != self.classes.names:
                raise KirieError(
                    f"Objects of the classes {list(objects.classes.names)} cannot be scored by a metric for "
                    f"{list(self.classes.names)}: the ids would mean different things. Build both with one Classes."
                )
        result, truth = _packed(replace(result.singles(), areas=None)), _packed(truth)
        self.pictures.append((result, truth))
        shown = result[result.scores >= self.threshold]
        within = Matching.of(shown, truth, within_class=True)
        self.matching_by_class += within
        self.matching += within if len(self.classes) == 1 else Matching.of(shown, truth, within_class=False)

    def merge(self, other: InstanceMetric) -> None:
        """Adds what another metric has collected, behind its own pictures.

        Raises:
            KirieError: when classes, threshold or `max_detections` differ.
        """
        ours, theirs = ((each.classes.names, each.threshold, each.max_detections) for each in (self, other))
        if ours != theirs:
            raise KirieError("Only metrics for the same classes, threshold and max_detections can be merged.")
        self.pictures += other.pictures
        self.matching += other.matching
        self.matching_by_class += other.matching_by_class

    def quick_score(self) -> float:
        """Matching accuracy within the classes at IoU 0.50; NaN where there is neither an object nor a result."""
        return float(self.matching_by_class.together().accuracy[0])

    def compute(self) -> InstanceReport:
        """The report on everything collected so far; the metric may go on collecting."""
        masks, boxes = (
            average_precision(self.pictures, len(self.classes), kind, self.max_detections)
            for kind in ("masks", "boxes")
        )
        return InstanceReport(
            self.classes,
            masks,
            boxes,
            self.matching.together(),
            self.matching_by_class,
            _counting(self.pictures, self.threshold),
            self.threshold,
            self.max_detections,
            len(self.pictures),
            sum(_most_of_a_class(truth) > self.max_detections for _, truth in self.pictures),
            sum(len(result) for result, _ in self.pictures),
        )


def _packed(objects: Instances) -> Instances:
    """The same objects with masks as run lengths, and with the masks' areas where none are stated."""
    rles = objects.masks.rles()
    areas = objects.areas
    if areas is None:
        areas = np.asarray(coco_mask.area(rles), np.float64).reshape(len(rles))
    return replace(objects, masks=Masks(objects.size, tuple(rle["counts"] for rle in rles)), areas=areas)


def _counting(pictures: Sequence[Picture], threshold: float) -> Counting:
    plain = [(result, truth) for result, truth in pictures if not truth.crowd.any()]
    found = [np.count_nonzero(result.scores >= threshold) for result, _ in plain]
    return Counting(np.array(found, np.int64), np.array([len(truth) for _, truth in plain], np.int64))


def _most_of_a_class(truth: Instances) -> int:
    return int(np.bincount(truth.singles().labels, minlength=1).max())


def _scores(matching: Matching) -> dict[str, npt.NDArray[np.float64]]:
    """The scores by the names that they have in reports."""
    return {name: getattr(matching, name.removeprefix("matching_")) for name in _MATCHING}


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")
