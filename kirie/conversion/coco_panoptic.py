"""COCO panoptic: `images/SPLIT`, `panoptic/SPLIT` with the ids of segments as colours, and `panoptic_SPLIT.json`.

The format is that of https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from PIL import Image

from kirie.classes import Classes
from kirie.coco_words import id_colors, segments_info
from kirie.conversion.coco_lists import CocoLists
from kirie.conversion.folders import label_path, picture_path
from kirie.conversion.writer import Entry, Writer
from kirie.data.dataset import Task
from kirie.results import Result, to_panoptic


class CocoPanopticWriter(Writer):
    """Segments keep their ids, crowds stay crowds, and void is black; only the numbers of rows are kept."""

    title: ClassVar[str] = "COCO panoptic"
    needs_segments: ClassVar[bool] = True

    def __init__(self, root: Path, classes: Classes, task: Task, splits: Sequence[str]) -> None:
        super().__init__(root, classes, task, splits)
        self.lists = CocoLists(root, "panoptic", classes, splits)
        self._notes += self.lists.notes

    def picture_path(self, entry: Entry) -> str:
        """In `images`."""
        return picture_path(entry)

    def write(self, entry: Entry, truth: Result) -> None:
        """Writes the PNG file, and appends the picture and its segments to what will be the file of its split."""
        segments = to_panoptic(truth)
        colors, info = id_colors(segments.ids), segments_info(segments, self.lists.category_ids)
        path = self._path(label_path("panoptic", entry))
        Image.fromarray(colors).save(path)
        row = {"image_id": self.lists.picture(entry), "file_name": path.name, "segments_info": info}
        self.lists.annotations(entry.split, [row])
        self.objects += sum(segment.is_thing and not segment.crowd for segment in segments.segments)

    def finish(self) -> None:
        """Joins the pictures and annotations of each split to its file, with the categories."""
        self.lists.finish(self.classes.things)
