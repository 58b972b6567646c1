"""YOLO segmentation: `images`, `labels` with a line of relative corners for each object, and `data.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from kirie.classes import Classes
from kirie.conversion.folders import label_path, picture_path
from kirie.conversion.writer import Entry, Writer
from kirie.data.dataset import Task
from kirie.results import Result
from kirie.yolo_words import data_yaml, object_lines


class YoloWriter(Writer):
    """`labels/SPLIT/NAME.txt`: a line `class x1 y1 x2 y2...` for each object, in shares of width and height.

    See `yolo_words.object_lines`. Programs that paint the ring's own line as well, as `cv2.fillPoly` does, make objects
    up to a pixel wider to the right and below and show bridges as thin lines.
    """

    title: ClassVar[str] = "YOLO segmentation"
    needs_objects: ClassVar[bool] = True

    def __init__(self, root: Path, classes: Classes, task: Task, splits: Sequence[str]) -> None:
        super().__init__(root, classes, task, splits or ("train",))
        if not splits:
            self._notes.append("All pictures are in train, since YOLO has a folder for each split.")

    def picture_path(self, entry: Entry) -> str:
        """In `images`."""
        return picture_path(self._placed(entry))

    def write(self, entry: Entry, truth: Result) -> None:
        """Writes the label file; it is empty for a picture without objects."""
        objects = self._singles(truth, "left out, since YOLO files cannot mark them")
        lines = object_lines(objects)
        self.objects += len(lines)
        self._write_text(label_path("labels", self._placed(entry), ".txt"), "".join(lines))

    def finish(self) -> None:
        """Writes `data.yaml`: where the splits are, and the names of the classes by number."""
        self._write_text("data.yaml", data_yaml(self.classes, {split: f"images/{split}" for split in self.splits}))

    @staticmethod
    def _placed(entry: Entry) -> Entry:
        return entry._replace(split=entry.split or "train")
