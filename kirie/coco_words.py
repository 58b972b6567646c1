"""Parts of COCO's files that data sets and results have alike: numbers of classes, boxes, run lengths, segment ids.

The format is that of https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.boxes import to_xywh
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.results import PanopticMap


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


def id_colors(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """The RGB picture (H, W, 3) that COCO panoptic writes for segment ids (H, W): R + 256 G + 65536 B.

    Raises:
        KirieError: when an id is below 0 or does not fit into 24 bits.
    """
    if int(ids.min()) < 0 or int(ids.max()) >= 1 << 24:
        raise KirieError(
            f"COCO panoptic files hold segment ids from 0 to 16777215, got {int(ids.min())} to {int(ids.max())}."
        )
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def ids_of_colors(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """The segment ids (H, W) of such a picture (H, W, 3)."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    ids: npt.NDArray[np.int32] = red | green << 8 | blue << 16
    return ids


def segments_info(result: PanopticMap, categories: Sequence[int]) -> list[dict[str, Any]]:
    """The segments of a panoptic map as COCO panoptic lists them, without scores; `categories` are the classes' ids."""
    place = {segment.id: row for row, segment in enumerate(result.segments)}
    boxes = bboxes(Masks.from_ids(result.ids, list(place)).boxes())
    return [
        {
            "id": segment.id,
            "category_id": categories[segment.label],
            "iscrowd": int(segment.crowd),
            "bbox": boxes[place[segment.id]],
            "area": segment.area,
        }
        for segment in result.segments
    ]
