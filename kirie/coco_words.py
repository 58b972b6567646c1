"""Parts of COCO's JSON files that data sets and results have alike: numbers of classes, boxes, run lengths.

The format is that of https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.boxes import to_xywh
from kirie.classes import Classes
from kirie.masks import Masks


def category_ids(classes: Classes) -> tuple[int, ...]:
    """What COCO files call the classes: their ids in files or, as COCO counts from 1, 1, 2, 3... where one is below."""
    return classes.ids if min(classes.ids) > 0 else tuple(range(1, len(classes) + 1))


def bboxes(boxes: npt.NDArray[np.float32]) -> list[list[int | float]]:
    """Left, top, width and height of each box (N, 4) in the fewest digits that give its float32 edges back."""
    edges = np.array([float(str(edge)) for edge in boxes.ravel()]).reshape(-1, 4)
    return [[number(value) for value in box] for box in to_xywh(edges).round(6).tolist()]


def number(value: float) -> int | float:
    """A number as JSON has it shortest: a whole one without a point."""
    return int(value) if float(value).is_integer() else float(value)


def run_lengths(masks: Masks) -> list[dict[str, Any]]:
    """Masks as compressed run lengths in plain JSON."""
    return [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in masks.rles()]
