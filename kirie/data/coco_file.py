"""A COCO instances file as arrays: read once, entry by entry, so that the largest take the space of their numbers.

Coordinates stay float64, because how COCO fills a polygon turns on differences that float32 rounds away.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.data.coco_pictures import (
    EXAMPLES,
    NO_ID,
    CocoPictures,
    PictureReader,
    annotation_name,
    packed,
    read_lists,
    shortened,
    whole_number,
)
from kirie.errors import KirieError

MAX_ANNOTATIONS = 100_000_000
_NO_BOX = (np.nan,) * 4


class Outline(IntEnum):
    """How an annotation states its mask."""

    NONE = 0
    POLYGONS = 1
    RLE = 2
    COUNTS = 3  # run lengths as a list of numbers
    BROKEN = 4


@dataclass(frozen=True, eq=False)
class CocoFile(CocoPictures):
    """The N pictures and M annotations of a file.

    Attributes:
        annotation_ids: (M,) int64, -1 where an annotation has no whole number.
        category_ids: (M,) int64, as the file has them.
        boxes: (M, 4) float64 x, y, width, height; NaN where there is none.
        areas: (M,) float64; NaN likewise.
        crowd: (M,) bool.
        outlines: (M,) uint8, `Outline`.
    """

    annotation_ids: npt.NDArray[np.int64]
    category_ids: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    outlines: npt.NDArray[np.uint8]
    _order: npt.NDArray[np.int32]  # annotations by picture; those of picture n between _starts[n] and _starts[n + 1]
    _starts: npt.NDArray[np.int64]
    _rings: npt.NDArray[np.int64]  # (M + 1,) where the rings of an annotation start in _ring_starts
    _ring_starts: npt.NDArray[np.int64]  # (R + 1,) where the numbers of a ring start
    _numbers: npt.NDArray[np.float64]
    _code_starts: npt.NDArray[np.int64]  # (M + 1,) where the packed run lengths of an annotation start
    _codes: npt.NDArray[np.uint8]

    def annotations(self, picture: int) -> npt.NDArray[np.int32]:
        """The numbers 0..M-1 of the annotations of picture number `picture`, in the file's order."""
        return self._order[self._starts[picture] : self._starts[picture + 1]]

    def listed(self) -> npt.NDArray[np.int32]:
        """The numbers of the annotations of all pictures that the file lists."""
        return self._order[self._starts[0] :]

    def rings(self, annotation: int) -> list[npt.NDArray[np.float64]]:
        """The rings of an annotation of `Outline.POLYGONS`, each x1, y1, x2, y2..."""
        first, last = self._rings[annotation], self._rings[annotation + 1]
        edges = self._ring_starts[first : last + 1].tolist()
        return [self._numbers[start:end] for start, end in pairwise(edges)]

    def rle(self, annotation: int) -> dict[str, Any]:
        """The run lengths of an annotation of `Outline.RLE` or `COUNTS`, as COCO writes them."""
        (numbers,) = self.rings(annotation)
        whole: list[Any] = [int(n) if n.is_integer() else n for n in numbers.tolist()]
        stated = {} if np.isnan(numbers[0]) else {"size": whole[:2]}
        if self.outlines[annotation] == Outline.COUNTS:
            return {**stated, "counts": whole[2:]}
        start, end = self._code_starts[annotation], self._code_starts[annotation + 1]
        return {**stated, "counts": self._codes[start:end].tobytes()}


def read_coco(path: str | Path) -> CocoFile:
    """Reads a COCO instances file.

    Raises:
        KirieError: when the file cannot be read, is no JSON, or is not as COCO's instances files are.
    """
    reader = _Reader(str(path))
    return reader.file(labelled=read_lists(path, reader, reader.annotation))


class _Reader(PictureReader):
    """Takes the entries in any order and packs them."""

    title = "instances"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.annotation_ids, self.category_ids = array("q"), array("q")
        self.boxes, self.areas = array("d"), array("d")
        self.crowd, self.outlines = array("B"), array("B")
        self.rings, self.ring_starts, self.numbers = array("q", [0]), array("q", [0]), array("d")
        self.code_starts, self.packed = array("q", [0]), bytearray()

    def annotation(self, entry: dict[str, Any], where: str) -> None:
        if len(self.annotation_ids) >= MAX_ANNOTATIONS:
            raise KirieError(f"{self.path} has more than {MAX_ANNOTATIONS:,} annotations.")
        if "segments_info" in entry:
            raise KirieError(
                f"{self.path} is a COCO panoptic file, expected one of instances; leave data.format out, or say "
                "data.format: coco_panoptic."
            )
        category, number = whole_number(entry.get("category_id")), whole_number(entry.get("id"))
        if category is None:
            stated = shortened(entry.get("category_id"))
            raise KirieError(f"{where} has the category_id {stated}; expected a whole number.")
        self.image_codes.append(self.code(entry.get("image_id"), "image_id", where))
        self.category_ids.append(category)
        self.annotation_ids.append(NO_ID if number is None or number < 0 else number)
        self.crowd.append(whole_number(entry.get("iscrowd")) == 1)
        box, area = entry.get("bbox"), entry.get("area")
        if not (isinstance(box, list) and len(box) == 4 and self._take(self.boxes, box)):
            self.boxes.extend(_NO_BOX)
        if not self._take(self.areas, [area]):
            self.areas.append(np.nan)
        rings, numbers = len(self.ring_starts), len(self.numbers)
        outline = self._outline(entry.get("segmentation"))
        if outline in (Outline.NONE, Outline.BROKEN):
            del self.ring_starts[rings:], self.numbers[numbers:]
        self.outlines.append(outline)
        self.rings.append(len(self.ring_starts) - 1)
        self.code_starts.append(len(self.packed))

    def _outline(self, stated: Any) -> Outline:
        """Packs a segmentation."""
        if not stated:
            return Outline.NONE
        if isinstance(stated, list):
            rings = [stated] if isinstance(stated[0], int | float) else stated
            found = [bool(ring) and self._ring(ring) for ring in rings]
            sound = all(there for there, ring in zip(found, rings, strict=True) if ring)
            return Outline.BROKEN if not sound else Outline.POLYGONS if any(found) else Outline.NONE
        counts = stated.get("counts") if isinstance(stated, dict) else None
        size = stated.get("size", [np.nan, np.nan]) if isinstance(stated, dict) else None
        if not isinstance(size, list) or len(size) != 2:
            return Outline.BROKEN
        if isinstance(counts, list):
            return Outline.COUNTS if self._ring([*size, *counts]) else Outline.BROKEN
        if not isinstance(counts, str) or not counts.isascii() or not self._ring(size):
            return Outline.BROKEN
        self.packed += counts.encode("ascii")
        return Outline.RLE

    def _ring(self, ring: Any) -> bool:
        if not isinstance(ring, list) or not self._take(self.numbers, ring):
            return False
        self.ring_starts.append(len(self.numbers))
        return True

    @staticmethod
    def _take(numbers: array[float], new: list[Any]) -> bool:
        """Appends numbers; False, and nothing appended, when they are none."""
        try:
            numbers.fromlist(new)
        except (TypeError, OverflowError):
            return False
        return True

    def file(self, *, labelled: bool) -> CocoFile:
        """All that was taken."""
        rows = self.annotation_rows()
        order = np.argsort(rows, kind="stable").astype(np.int32)
        starts = np.searchsorted(rows, np.arange(len(self.rows) + 1), sorter=order)
        strays = order[: int(starts[0])]
        called = [annotation_name(self.annotation_ids[k], k) for k in strays[:EXAMPLES].tolist()]
        return CocoFile(
            **self.pictures(labelled=labelled, strays=strays, called=called),
            annotation_ids=packed(self.annotation_ids, np.int64),
            category_ids=packed(self.category_ids, np.int64),
            boxes=packed(self.boxes, np.float64).reshape(-1, 4),
            areas=packed(self.areas, np.float64),
            crowd=packed(self.crowd, np.bool_),
            outlines=packed(self.outlines, np.uint8),
            _order=order,
            _starts=starts,
            _rings=packed(self.rings, np.int64),
            _ring_starts=packed(self.ring_starts, np.int64),
            _numbers=packed(self.numbers, np.float64),
            _code_starts=packed(self.code_starts, np.int64),
            _codes=packed(self.packed, np.uint8),
        )
