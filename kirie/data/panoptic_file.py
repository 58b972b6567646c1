"""A COCO panoptic file as arrays: read once, entry by entry; a segment takes 13 bytes."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.data.coco_pictures import (
    EXAMPLES,
    Category,
    CocoPictures,
    Entry,
    PictureReader,
    file_name,
    packed,
    read_lists,
    shortened,
    whole_number,
)
from kirie.data.pair_table import Texts
from kirie.errors import KirieError

MAX_SEGMENTS = 100_000_000
MAX_ID = 2**24 - 1  # that three bytes of colour hold
_CHUNK = 2**20
# What an annotation holds, of which COCO's panoptic files have the first around the last.
_MARKS = re.compile(rb'"(segments_info|segmentation|bbox)"\s*:')


@dataclass(frozen=True, eq=False)
class PanopticFile(CocoPictures):
    """The N pictures and S segments of a file.

    Attributes:
        masks: paths of the PNG files, one for each annotation.
        segment_ids: (S,) int32, 1 to 16777215; those of one picture differ.
        category_ids: (S,) int64, as the file has them.
        crowd: (S,) bool.
    """

    masks: Texts
    segment_ids: npt.NDArray[np.int32]
    category_ids: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    _annotations: npt.NDArray[np.int32]  # (N,) the annotation of a picture, -1 for none
    _starts: npt.NDArray[np.int64]  # where the segments of an annotation start, and where the last one's end

    def mask(self, picture: int) -> str | None:
        """The path of the PNG file of picture number `picture`; None where it has no annotation."""
        annotation = int(self._annotations[picture])
        return None if annotation < 0 else self.masks[annotation]

    def segments(self, picture: int) -> slice:
        """The place of the segments of a picture in the arrays."""
        annotation = int(self._annotations[picture])
        return slice(0, 0) if annotation < 0 else slice(*self._starts[annotation : annotation + 2].tolist())

    def listed_categories(self) -> npt.NDArray[np.int64]:
        """The numbers of the categories that segments of listed pictures have, ascending."""
        used = np.zeros(len(self.masks), bool)
        used[self._annotations[self._annotations >= 0]] = True
        return np.unique(self.category_ids[np.repeat(used, np.diff(self._starts))])


def is_panoptic(path: str | Path) -> bool:
    """Whether a JSON file has annotations as COCO's panoptic files have; no more of it is read than shows it."""
    rest = b""
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK):
                found = _MARKS.search(rest + chunk)
                if found is not None:
                    return found[1] == b"segments_info"
                rest = chunk[-64:]  # an entry that the chunk cuts
    except OSError:
        pass
    return False


def read_panoptic(path: str | Path) -> PanopticFile:
    """Reads a COCO panoptic file.

    Raises:
        KirieError: when the file cannot be read, is no JSON, or is not as COCO's panoptic files are: a segment without
            a number of its own from 1 to 16777215, a category that does not say whether it is a thing, two annotations
            of one picture.
    """
    reader = _Reader(str(path))
    return reader.file(labelled=read_lists(path, reader, reader.annotation))


class _Reader(PictureReader):
    """Takes the entries in any order and packs them."""

    title = "panoptic"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.masks: list[str] = []
        self.segment_ids, self.category_ids, self.crowd = array("i"), array("q"), array("B")
        self.starts = array("q", [0])

    def category(self, entry: Entry, where: str) -> None:
        number, name = self.id_and_name(entry, where)
        thing = whole_number(entry.get("isthing"))
        if thing not in (0, 1):
            raise KirieError(
                f"{where} ({name!r}) has the isthing {shortened(entry.get('isthing'))}; expected 1 for things, whose "
                "objects are told apart, and 0 for stuff."
            )
        self.take_category(Category(number, name, bool(thing), _color(entry.get("color"))), where)

    def annotation(self, entry: Entry, where: str) -> None:
        segments = entry.get("segments_info")
        if not isinstance(segments, list):
            raise KirieError(
                f"{where} has the segments_info {shortened(segments)}; expected the list of segments that COCO's "
                "panoptic files have. data.format: coco reads files of instances."
            )
        self.image_codes.append(self.code(entry.get("image_id"), "image_id", where))
        self.masks.append(file_name(entry, where))
        for place, segment in enumerate(segments):
            self._segment(segment, where, place)
        numbers = self.segment_ids[self.starts[-1] :]
        if len(set(numbers)) < len(numbers):
            [(twice, _)] = Counter(numbers).most_common(1)
            raise KirieError(f"{where} lists the segment {twice} more than once; give each an id of its own.")
        self.starts.append(len(self.segment_ids))

    def _segment(self, segment: Any, where: str, place: int) -> None:
        if len(self.segment_ids) >= MAX_SEGMENTS:
            raise KirieError(f"{self.path} has more than {MAX_SEGMENTS:,} segments.")
        if not isinstance(segment, dict):
            what = f"is {shortened(segment)}; expected an object as COCO has it"
            raise KirieError(f"{where}, segments_info[{place}] {what}.")
        number, category = whole_number(segment.get("id")), whole_number(segment.get("category_id"))
        if number is None or not 1 <= number <= MAX_ID:
            what = (
                f"has the id {shortened(segment.get('id'))}; expected a whole number from 1 to {MAX_ID}, 0 being void"
            )
            raise KirieError(f"{where}, segments_info[{place}] {what}.")
        if category is None:
            what = f"has the category_id {shortened(segment.get('category_id'))}; expected a whole number"
            raise KirieError(f"{where}, segments_info[{place}] {what}.")
        self.segment_ids.append(number)
        self.category_ids.append(category)
        crowd = whole_number(segment.get("iscrowd", 0))
        if crowd not in (0, 1):
            what = f"has the iscrowd {shortened(segment.get('iscrowd'))}; expected 1 for a crowd, else 0"
            raise KirieError(f"{where}, segments_info[{place}] {what}.")
        self.crowd.append(crowd)

    def file(self, *, labelled: bool) -> PanopticFile:
        """All that was taken.

        Raises:
            KirieError: when a picture has two annotations.
        """
        rows = self.annotation_rows()
        annotations = np.full(len(self.rows), -1, np.int32)
        there = np.flatnonzero(rows >= 0)
        annotations[rows[there]] = there
        twice = there[annotations[rows[there]] != there]
        if len(twice):
            name = list(self.rows)[rows[twice[0]]]
            raise KirieError(
                f"{self.path}: annotations[{twice[0]}] and [{annotations[rows[twice[0]]]}] are both of {name}; take "
                "one of them out."
            )
        strays = np.flatnonzero(rows < 0).astype(np.int32)
        called = [f"annotations[{k}]" for k in strays[:EXAMPLES].tolist()]
        return PanopticFile(
            **self.pictures(labelled=labelled, strays=strays, called=called),
            masks=Texts(self.masks),
            segment_ids=packed(self.segment_ids, np.int32),
            category_ids=packed(self.category_ids, np.int64),
            crowd=packed(self.crowd, np.bool_),
            _annotations=annotations,
            _starts=packed(self.starts, np.int64),
        )


def _color(stated: Any) -> tuple[int, int, int] | None:
    """A colour as Classes has it; None where there is none that can be used."""
    if not isinstance(stated, list) or len(stated) != 3:
        return None
    red, green, blue = (whole_number(value) for value in stated)
    if red is None or green is None or blue is None or not all(0 <= v <= 255 for v in (red, green, blue)):
        return None
    return red, green, blue
