"""COCO instances: `images/SPLIT` and `instances_SPLIT.json` with masks as run lengths or as polygons.

The format is that of https://cocodataset.org/#format-data; `area` and `bbox` are in pixels, ids count from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from kirie.classes import Classes
from kirie.coco_words import bboxes, number, run_lengths
from kirie.conversion.coco_lists import CocoLists
from kirie.conversion.folders import picture_path
from kirie.conversion.writer import Entry, Writer
from kirie.data.dataset import Task
from kirie.masks import Masks
from kirie.results import Instances, Result, to_instances


class CocoWriter(Writer):
    """Annotations are written as they come; only the number of pictures and annotations is kept.

    Masks are run lengths, which hold every mask exactly. Polygons, where they are asked for, run along the edges of
    pixels, a hole joined to its outline by a bridge; a mask that COCO's filling would not give back from them stays
    run lengths, and so do crowds, as in COCO's own files.
    """

    title: ClassVar[str] = "COCO instances"
    needs_objects: ClassVar[bool] = True

    def __init__(
        self, root: Path, classes: Classes, task: Task, splits: Sequence[str], *, polygons: bool = False
    ) -> None:
        super().__init__(root, classes, task, splits)
        self.polygons = polygons
        self.lists = CocoLists(root, "instances", classes, splits)
        self._notes += self.lists.notes

    def picture_path(self, entry: Entry) -> str:
        """In `images`."""
        return picture_path(entry)

    def write(self, entry: Entry, truth: Result) -> None:
        """Appends the picture and its annotations to what will be the file of its split."""
        objects = to_instances(truth)
        there = objects.masks.areas() > 0
        self._tell("object without a pixel", "left out", int((~there).sum()))
        objects = objects[there]
        picture = self.lists.picture(entry)
        rows = self._rows(objects, picture, self.lists.annotated(entry.split) + 1)
        self.objects += len(rows)
        self.lists.annotations(entry.split, rows)

    def _rows(self, objects: Instances, picture: int, first: int) -> list[dict[str, Any]]:
        areas = objects.masks.areas() if objects.areas is None else objects.areas
        rows = []
        for index, (box, rle) in enumerate(zip(bboxes(objects.boxes), run_lengths(objects.masks), strict=True)):
            wanted = self.polygons and not objects.crowd[index]
            rings = polygons(objects.masks[index]) if wanted else None
            rows.append(
                {
                    "id": first + index,
                    "image_id": picture,
                    "category_id": self.lists.category_ids[objects.labels[index]],
                    "segmentation": rle if rings is None else rings,
                    "area": number(areas[index]),
                    "bbox": box,
                    "iscrowd": int(objects.crowd[index]),
                }
            )
            self._tell("mask", "kept as run lengths", int(wanted and rings is None))
        return rows

    def finish(self) -> None:
        """Joins the pictures and annotations of each split to its file, with the categories."""
        self.lists.finish([True] * len(self.classes))


def polygons(mask: Masks) -> list[list[int]] | None:
    """One mask as COCO polygons, a flat ring for each part; None where filling them would not give it back."""
    rings: list[list[int]] = [ring.ravel().tolist() for ring in mask.polygons()[0]]
    again = Masks.from_polygons([rings], mask.size)
    return rings if rings and again.rles() == mask.rles() else None
