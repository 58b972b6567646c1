"""YOLO segmentation: `images`, `labels` with a line of relative corners for each object, and `data.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml

from kirie.classes import Classes
from kirie.conversion.folders import label_path, picture_path
from kirie.conversion.writer import Entry, Writer
from kirie.data.dataset import Task
from kirie.outlines import outline
from kirie.results import Result


class YoloWriter(Writer):
    """`labels/SPLIT/NAME.txt`: a line `class x1 y1 x2 y2...` for each object, in shares of width and height.

    A line holds one ring along the edges of pixels; holes and further parts are joined to it by bridges without width.
    Filled as COCO fills polygons it gives the mask back exactly. Programs that paint the ring's own line as well, as
    `cv2.fillPoly` does, make objects up to a pixel wider to the right and below and show bridges as thin lines.
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
        height, width = entry.size
        lines = []
        for label, crop in zip(objects.labels.tolist(), objects.masks.crops(), strict=True):
            ring = outline(crop)
            if ring is not None:
                shares = ring / np.array([width, height])
                lines.append(" ".join([str(label), *(f"{share:.7g}" for share in shares.ravel().tolist())]) + "\n")
        self.objects += len(lines)
        self._write_text(label_path("labels", self._placed(entry), ".txt"), "".join(lines))

    def finish(self) -> None:
        """Writes `data.yaml`: where the splits are, and the names of the classes by number."""
        facts = {**{split: f"images/{split}" for split in self.splits}, "names": dict(enumerate(self.classes.names))}
        self._write_text("data.yaml", yaml.safe_dump(facts, allow_unicode=True, sort_keys=False))

    @staticmethod
    def _placed(entry: Entry) -> Entry:
        return entry._replace(split=entry.split or "train")
