"""The objects of one picture of a COCO file: masks, boxes and classes, and what is wrong with its annotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie import boxes as box_maths
from kirie.classes import Classes
from kirie.data.coco_file import CocoFile, Outline
from kirie.data.coco_pictures import annotation_name
from kirie.data.fault import Fault, named, without_pixels
from kirie.data.objects import Objects
from kirie.errors import KirieError, counted
from kirie.masks import Crop, Masks
from kirie.results import Instances

BROKEN = "It is neither a list of rings of numbers nor run lengths with size and counts."
REWRITE = "Write it again, or take it out."
_FIT = 0.3  # least IoU of a box with its mask's
_ROUNDING = 3.0  # pixels that the sides of a small box may differ from its mask's


def coco_objects(
    file: CocoFile, picture: int, labels: Mapping[int, int], classes: Classes, size: tuple[int, int] | None
) -> Objects:
    """The objects of a picture.

    Boxes are the file's, cut to the picture, and the mask's where the file has none or one that does not fit its mask.
    Annotations without an outline or whose mask has no pixel are left out. Areas are the file's, and the mask's where
    it has none that is finite and at least 0.

    Args:
        file: the file.
        picture: the picture's number in it.
        labels: class ids by the file's category ids; -1 for categories that are to be ignored.
        classes: the classes.
        size: (H, W) of the picture where the file does not say.
    """
    stated = (int(file.sizes[picture, 0]), int(file.sizes[picture, 1]))
    actual = stated if all(stated) else size
    if actual is None:
        return Objects(None)
    look = _Look(file, file.names[picture], actual)
    kept: list[int] = []
    items: list[Crop | bytes] = []
    for row in file.annotations(picture).tolist():
        label = labels.get(int(file.category_ids[row]))
        if label is None:
            look.unknown(row)
        elif label >= 0:
            masks = look.masks(row)
            if masks is not None:
                kept.append(row)
                items += masks.items
    masks = Masks(actual, tuple(items))
    areas = file.areas[kept]
    areas = np.where(np.isfinite(areas) & (areas >= 0), areas, masks.areas()) if kept else areas
    truth = Instances(
        look.boxes(kept, masks),
        np.array([labels[number] for number in file.category_ids[kept].tolist()], np.int64),
        np.ones(len(kept), np.float32),
        masks,
        actual,
        classes,
        file.crowd[kept],
        areas,
    )
    return Objects(truth, tuple(look.faults()), look.refused)


class _Finding(NamedTuple):
    """What is wrong with the annotations of a picture that have one fault in common."""

    severity: Literal["fault", "note"]
    first: str  # what is wrong with the first of them
    mend: str
    rows: list[int]


class _Look:
    """What is wrong with a picture's annotations, as it is found."""

    def __init__(self, file: CocoFile, picture: str, size: tuple[int, int]) -> None:
        self.file, self.picture, self.size = file, picture, size
        self.found: dict[str, _Finding] = {}
        self.bare: list[int] = []
        self.refused = ""

    def faults(self) -> Iterator[Fault]:
        """One fault for all annotations of a kind, so that a file of bad ones takes no more than its pictures."""
        for kind, (severity, first, mend, rows) in self.found.items():
            others = named([self._name(row) for row in rows[1:]])
            what = f"{self._owner(rows[0])} {first}"
            what += f" So it is with {counted(len(rows) - 1, 'other annotation')} of it{others}." if others else ""
            yield Fault(severity, kind, what, (self.file.path,), mend, len(rows))
        if self.bare:
            owner, places = f"{self.file.path}: {self.picture}", [self._name(row) for row in self.bare]
            yield without_pixels(owner, self.file.path, len(self.bare), places)

    def _name(self, row: int) -> str:
        return annotation_name(int(self.file.annotation_ids[row]), row)

    def _owner(self, row: int) -> str:
        return f"{self.file.path}: {self._name(row)} ({self.picture})"

    def _add(self, severity: Literal["fault", "note"], kind: str, row: int, what: str, mend: str) -> None:
        self.found.setdefault(kind, _Finding(severity, what, mend, [])).rows.append(row)

    def unknown(self, row: int) -> None:
        """Tells a category that the file does not list."""
        number = int(self.file.category_ids[row])
        mend = "Add it to `categories`, or leave its annotations out with data.ignore."
        self._add("fault", "unknown category", row, f"has the category_id {number}, which is no category.", mend)

    def masks(self, row: int) -> Masks | None:
        """The one mask of an annotation; None when it has none that can be used."""
        outline, found = self.file.outlines[row], None
        try:
            if outline == Outline.POLYGONS:
                rings = [ring.tolist() for ring in self.file.rings(row)]
                found = Masks.from_polygons([rings], self.size)
                self._short_rings(row, rings)
            elif outline in (Outline.RLE, Outline.COUNTS):
                found = Masks.from_rles([self.file.rle(row)], self.size)
            elif outline == Outline.BROKEN:
                raise KirieError(BROKEN)
        except KirieError as error:
            what = f"has a segmentation that cannot be used. {error}"
            self._add("fault", "segmentation cannot be used", row, what, REWRITE)
            self.refused = self.refused or f"{self._owner(row)} {what} {REWRITE}"
            return None
        if found is None:
            mend = "Outline it, or take it out; it is left out of the truth."
            self._add("fault", "object without outline", row, "has no segmentation.", mend)
            return None
        if not found.areas()[0]:
            self.bare.append(row)
            return None
        return found

    def _short_rings(self, row: int, rings: list[list[float]]) -> None:
        short = sum(len(ring) < 6 for ring in rings)
        if 0 < short < len(rings):
            what = f"has {short} of its {len(rings)} rings with fewer than 3 points."
            self._add("note", "ring without area", row, what, "They cover nothing; delete them.")

    def boxes(self, rows: list[int], masks: Masks) -> npt.NDArray[np.float32]:
        """The boxes of annotations, (N, 4) xyxy."""
        height, width = self.size
        stated = self.file.boxes[rows].reshape(-1, 4)
        edges = np.concatenate([stated[:, :2], stated[:, :2] + stated[:, 2:]], 1)
        inside = np.clip(edges, 0, [width, height, width, height])
        own = masks.boxes()
        sound = np.isfinite(stated).all(1) & (inside[:, 2:] > inside[:, :2]).all(1)
        beyond = np.isfinite(stated).all(1) & (np.abs(edges - inside) > 1).any(1)
        for at in np.flatnonzero(beyond).tolist():
            what = f"has the bbox {stated[at].tolist()}, which leaves the picture of {height} x {width} (H x W)."
            self._add("note", "box beyond the picture", rows[at], what, "It is cut to the picture; mend the file.")
        found = np.where(sound[:, None], inside, own).astype(np.float32)
        far = sound & ~self.file.crowd[rows] & (np.abs(found - own) > _ROUNDING).any(1)
        for at in np.flatnonzero(far).tolist():
            if float(box_maths.iou_matrix(found[at : at + 1], own[at : at + 1])[0, 0]) < _FIT:
                what = f"has the bbox {stated[at].tolist()}, but its outline lies in {_xywh(own[at])}."
                mend = "A bbox is [x, y, width, height] in pixels. Mend it; the outline's own box is used in its place."
                self._add("fault", "box beside its outline", rows[at], what, mend)
                found[at] = own[at]
        return found


def _xywh(box: npt.NDArray[np.float32]) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]
