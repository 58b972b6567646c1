"""A COCO instances file as arrays: read once, entry by entry, so that the largest take the space of their numbers.

Coordinates stay float64, because how COCO fills a polygon turns on differences that float32 rounds away.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie.data.pair_table import Texts
from kirie.errors import KirieError
from kirie.reading.json_stream import json_entries

MAX_IMAGES = 10_000_000
MAX_ANNOTATIONS = 100_000_000
MAX_NAME = 4096  # characters of a file name, the most that file systems take
EXAMPLES = 3
_NO_ID = -1  # of an annotation without a whole number as id
_NO_BOX = (np.nan,) * 4


class Outline(IntEnum):
    """How an annotation states its mask."""

    NONE = 0
    POLYGONS = 1
    RLE = 2
    COUNTS = 3  # run lengths as a list of numbers
    BROKEN = 4


class Category(NamedTuple):
    """A class by the number that the file has for it."""

    id: int
    name: str


@dataclass(frozen=True, eq=False)
class CocoFile:
    """The N pictures and M annotations of a file.

    Attributes:
        path: the file.
        categories: in the file's order.
        labelled: whether the file has annotations at all, if only an empty list; lists of test pictures have none.
        names: N paths of pictures as the file has them, with /; no two are equal.
        ids: N ids of the pictures, whole numbers or else texts.
        sizes: (N, 2) int64 H, W; 0, 0 where the file does not say.
        annotation_ids: (M,) int64, -1 where an annotation has no whole number.
        category_ids: (M,) int64, as the file has them.
        boxes: (M, 4) float64 x, y, width, height; NaN where there is none.
        areas: (M,) float64; NaN likewise.
        crowd: (M,) bool.
        outlines: (M,) uint8, `Outline`.
        doubled: names of pictures that the file lists more than once; they have the annotations of all their entries.
        strays: annotations of pictures that the file does not list.
        stray_examples: some of them, in words.
    """

    path: str
    categories: tuple[Category, ...]
    labelled: bool
    names: Texts
    ids: Sequence[str] | npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    annotation_ids: npt.NDArray[np.int64]
    category_ids: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    outlines: npt.NDArray[np.uint8]
    doubled: tuple[str, ...]
    strays: int
    stray_examples: tuple[str, ...]
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
    steps = {"images": reader.image, "annotations": reader.annotation, "categories": reader.category}
    seen = set()
    for key, entries in json_entries(path):
        step = steps.get(key)
        if step is None:
            continue
        seen.add(key)
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise KirieError(f"{path}: {key}[{number}] is {_short(entry)}; expected an object as COCO has it.")
            step(entry, f"{path}: {key}[{number}]")
    if "images" not in seen:
        raise KirieError(
            f"{path} is no COCO instances file: it has no list `images`. Expected an object with the lists `images`, "
            "`annotations` and `categories`."
        )
    return reader.file(labelled="annotations" in seen)


class _Reader:
    """Takes the entries in any order and packs them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.categories: dict[int, Category] = {}
        self.codes: dict[int | str, int] = {}  # numbers of the ids of pictures as they come up, listed or not
        self.row_of: dict[int, int] = {}  # the row of a picture by such a number
        self.rows: dict[str, int] = {}  # and by its name
        self.doubled: dict[str, None] = {}
        self.sizes, self.row_codes = array("q"), array("i")
        self.image_codes = array("i")
        self.annotation_ids, self.category_ids = array("q"), array("q")
        self.boxes, self.areas = array("d"), array("d")
        self.crowd, self.outlines = array("B"), array("B")
        self.rings, self.ring_starts, self.numbers = array("q", [0]), array("q", [0]), array("d")
        self.code_starts, self.packed = array("q", [0]), bytearray()

    def category(self, entry: dict[str, Any], where: str) -> None:
        number, name = _whole(entry.get("id")), entry.get("name")
        if number is None:
            raise KirieError(f"{where} has the id {_short(entry.get('id'))}; expected a whole number.")
        if not isinstance(name, str) or not name.strip():
            raise KirieError(f"{where} has the name {_short(name)}; expected a text.")
        known = self.categories.setdefault(number, Category(number, name.strip()))
        if known.name != name.strip():
            raise KirieError(f"{where} has the id {number} of the category {known.name!r}; give each its own.")

    def image(self, entry: dict[str, Any], where: str) -> None:
        code, name = self._code(entry.get("id"), "id", where), entry.get("file_name")
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or "\0" in name:
            raise KirieError(f"{where} has the file_name {_short(name)}; expected the path of a picture.")
        name = name.replace("\\", "/")
        size = [_whole(entry.get(side)) or 0 for side in ("height", "width")]
        size = size if min(size) > 0 else [0, 0]
        row = self.rows.setdefault(name, len(self.rows))
        if row == len(self.row_codes):
            if row >= MAX_IMAGES:
                raise KirieError(f"{self.path} lists more than {MAX_IMAGES:,} pictures.")
            self.row_codes.append(code)
            self.sizes.extend(size)
        else:
            self.doubled[name] = None
            if size != self.sizes[2 * row : 2 * row + 2].tolist():
                raise KirieError(f"{where}: {name} is listed twice with different sizes; take one of them out.")
        if self.row_of.setdefault(code, row) != row:
            raise KirieError(f"{where}: the id {_short(entry['id'])} is that of another picture; give each its own.")

    def annotation(self, entry: dict[str, Any], where: str) -> None:
        if len(self.annotation_ids) >= MAX_ANNOTATIONS:
            raise KirieError(f"{self.path} has more than {MAX_ANNOTATIONS:,} annotations.")
        if "segments_info" in entry:
            raise KirieError(
                f"{self.path} is a COCO panoptic file; kirie reads no panoptic truth yet, expected instances."
            )
        category, number = _whole(entry.get("category_id")), _whole(entry.get("id"))
        if category is None:
            stated = _short(entry.get("category_id"))
            raise KirieError(f"{where} has the category_id {stated}; expected a whole number.")
        self.image_codes.append(self._code(entry.get("image_id"), "image_id", where))
        self.category_ids.append(category)
        self.annotation_ids.append(_NO_ID if number is None or number < 0 else number)
        self.crowd.append(_whole(entry.get("iscrowd")) == 1)
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

    def _code(self, stated: Any, key: str, where: str) -> int:
        number = _whole(stated)
        if number is None and not isinstance(stated, str):
            raise KirieError(f"{where} has the {key} {_short(stated)}; expected a whole number or a text.")
        return self.codes.setdefault(stated if number is None else number, len(self.codes))

    def file(self, *, labelled: bool) -> CocoFile:
        """All that was taken."""
        known = np.full(len(self.codes), -1, np.int32)
        for code, row in self.row_of.items():
            known[code] = row
        rows = known[np.frombuffer(self.image_codes, np.int32)]
        order = np.argsort(rows, kind="stable").astype(np.int32)
        starts = np.searchsorted(rows, np.arange(len(self.rows) + 1), sorter=order)
        ids = list(self.codes)
        own_ids = [ids[code] for code in self.row_codes]
        strays = order[: int(starts[0])]
        stray_examples = tuple(
            f"{annotation_name(self.annotation_ids[k], k)} is of image_id {_short(ids[self.image_codes[k]])}"
            for k in strays[:EXAMPLES].tolist()
        )
        return CocoFile(
            path=self.path,
            categories=tuple(self.categories.values()),
            labelled=labelled,
            names=Texts(self.rows),
            ids=Texts(map(str, own_ids)) if any(isinstance(i, str) for i in own_ids) else np.array(own_ids, np.int64),
            sizes=_array(self.sizes, np.int64).reshape(-1, 2),
            annotation_ids=_array(self.annotation_ids, np.int64),
            category_ids=_array(self.category_ids, np.int64),
            boxes=_array(self.boxes, np.float64).reshape(-1, 4),
            areas=_array(self.areas, np.float64),
            crowd=_array(self.crowd, np.bool_),
            outlines=_array(self.outlines, np.uint8),
            doubled=tuple(self.doubled),
            strays=len(strays),
            stray_examples=stray_examples,
            _order=order,
            _starts=starts,
            _rings=_array(self.rings, np.int64),
            _ring_starts=_array(self.ring_starts, np.int64),
            _numbers=_array(self.numbers, np.float64),
            _code_starts=_array(self.code_starts, np.int64),
            _codes=_array(self.packed, np.uint8),
        )


def annotation_name(number: int, place: int) -> str:
    """How to name an annotation to a person: by its id, else by its place in the list."""
    return f"annotations[{place}]" if number == _NO_ID else f"annotation {number}"


def _array(values: array[Any] | bytearray, dtype: Any) -> npt.NDArray[Any]:
    """The values where they lie, not to be written to."""
    found = np.frombuffer(values, dtype)
    found.flags.writeable = False
    return found


def _whole(value: Any) -> int | None:
    """The whole number that a value means, also as 5.0 and "5"; None when it means none or more than 64 bits."""
    if type(value) is int and -(2**63) < value < 2**63:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and len(value) < 20 and value.isascii() and value.lstrip("-").isdigit():
        value = int(value) if str(int(value)) == value else None
    return int(value) if isinstance(value, int) and abs(value) < 2**63 else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
