"""COCO's average precision and average recall of boxes or masks, counted by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from kirie.boxes import to_xywh
from kirie.metrics.semantic import PerClass, mean_of_defined
from kirie.results import Instances

Kind = Literal["masks", "boxes"]
Picture = tuple[Instances, Instances]  # a result, and the truth of the same picture

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = ("all", "small", "medium", "large")

_TYPES: dict[Kind, Literal["segm", "bbox"]] = {"masks": "segm", "boxes": "bbox"}


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """Precision and recall over a data set, and COCO's twelve numbers from them.

    NaN stands where COCO writes -1: a class without an object (of a size) in the truth, which no mean takes in.

    Attributes:
        precision: (10, 101, K, 4) by IoU (`IOUS`), recall (`RECALLS`), class and size (`SIZES`), each value the highest
            precision at this recall or a larger one.
        recall: (10, K, 4, 3) by IoU, class, size and the most results of a class in a picture: 1, 10, and the limit.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]

    def ap_of(self, iou: float | None = None, size: str = "all") -> PerClass:
        """(K,) average precision of each class: at one IoU of `IOUS`, or over all; of objects of one of `SIZES`."""
        part = self.precision[..., SIZES.index(size)]
        rows = slice(None) if iou is None else [int(np.abs(IOUS - iou).argmin())]
        return np.asarray(part[rows].mean((0, 1)))

    def ar_of(self, size: str = "all", limit: int = 2) -> PerClass:
        """(K,) recall of each class, mean over `IOUS`; `limit` 0, 1 or 2 for 1, 10 or the most results."""
        return np.asarray(self.recall[:, :, SIZES.index(size), limit].mean(0))

    @property
    def ap(self) -> float:
        """Average precision, mean over IoU 0.50 to 0.95 and classes: COCO's AP."""
        return mean_of_defined(self.ap_of())

    @property
    def ap50(self) -> float:
        """Average precision at IoU 0.50."""
        return mean_of_defined(self.ap_of(0.5))

    @property
    def ap75(self) -> float:
        """Average precision at IoU 0.75."""
        return mean_of_defined(self.ap_of(0.75))

    @property
    def ar(self) -> float:
        """Average recall with as many results as the limit allows: COCO's AR100."""
        return mean_of_defined(self.ar_of())

    def to_dict(self) -> dict[str, float]:
        """The twelve numbers in COCO's order; `ar` is its AR100, where the limit is 100."""
        sizes = SIZES[1:]
        return {
            "ap": self.ap,
            "ap50": self.ap50,
            "ap75": self.ap75,
            **{f"ap_{size}": mean_of_defined(self.ap_of(size=size)) for size in sizes},
            "ar1": mean_of_defined(self.ar_of(limit=0)),
            "ar10": mean_of_defined(self.ar_of(limit=1)),
            "ar": self.ar,
            **{f"ar_{size}": mean_of_defined(self.ar_of(size)) for size in sizes},
        }

    def curve(self, iou: float) -> npt.NDArray[np.float64]:
        """(101,) precision at each of `RECALLS`, mean over the classes in the truth; NaN without any."""
        part = self.precision[int(np.abs(IOUS - iou).argmin()), :, :, 0]
        defined = part[:, ~np.isnan(part).any(0)]
        return np.asarray(defined.mean(1)) if defined.size else np.full(len(RECALLS), np.nan)


def average_precision(pictures: Sequence[Picture], classes: int, kind: Kind, max_detections: int) -> AveragePrecision:
    """COCO's precision and recall over pictures.

    Objects are sorted by size as COCO sorts them: truths by `areas`, results by their masks' `areas` or by their boxes.
    Among equal scores the earlier picture goes first, and within a picture the earlier result.

    Args:
        pictures: results with truths, both with `areas`.
        classes: K.
        kind: whether masks or boxes are compared.
        max_detections: the most results of a class that count in a picture, those with the highest scores.
    """
    if not pictures:
        return AveragePrecision(np.full((10, 101, classes, 4), np.nan), np.full((10, classes, 4, 3), np.nan))
    found = [result if kind == "masks" else replace(result, areas=None) for result, _ in pictures]
    results, truths = _as_coco(found, classes, kind), _as_coco([truth for _, truth in pictures], classes, kind)
    judge: Any = COCOeval_faster(truths, results, iouType=_TYPES[kind])
    judge.params.maxDets = [min(1, max_detections), min(10, max_detections), max_detections]
    judge.evaluate()
    judge.accumulate()
    precision, recall = judge.eval["precision"][..., 2], judge.eval["recall"]
    return AveragePrecision(*(np.where(values < 0, np.nan, values) for values in (precision, recall)))


def _as_coco(side: Sequence[Instances], classes: int, kind: Kind) -> Any:
    """The truths or the results of all pictures as a COCO data set; objects without `areas` have those of their boxes.

    All ids count from 1, as 0 means "not matched" there.
    """
    annotations: list[dict[str, Any]] = []
    for number, objects in enumerate(side, 1):
        boxes = to_xywh(objects.boxes)
        columns: dict[str, list[Any]] = {
            "category_id": (objects.labels + 1).tolist(),
            "score": objects.scores.tolist(),
            "iscrowd": objects.crowd.astype(int).tolist(),
            "area": (boxes[:, 2:].prod(1) if objects.areas is None else objects.areas).tolist(),
            "bbox": boxes.tolist(),
        }
        if kind == "masks":
            columns["segmentation"] = objects.masks.rles()
        for values in zip(*columns.values(), strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, **dict(zip(columns, values, strict=True))}
            )
    images = [{"id": n, "height": each.size[0], "width": each.size[1]} for n, each in enumerate(side, 1)]
    categories = [{"id": k + 1, "name": str(k)} for k in range(classes)]
    return COCO({"images": images, "categories": categories, "annotations": annotations})
