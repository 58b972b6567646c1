"""Data sets in plain folders: `images` beside `masks` of class numbers, or beside `ids` of object numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kirie.class_lists import VOC_VOID_COLOR
from kirie.classes import Classes
from kirie.conversion.writer import Entry, Writer
from kirie.data.dataset import Task
from kirie.errors import KirieError
from kirie.files import numbers_image
from kirie.results import Result, id_map, to_semantic

MAX_NUMBER = 65535


class MasksWriter(Writer):
    """`images/SPLIT/NAME` with `masks/SPLIT/NAME.png` of class numbers, and `classes.json`.

    Files keep the numbers of the classes; they have 8 bits and the colours of the classes where these numbers allow it.
    """

    title: ClassVar[str] = "folders of index masks"
    holds_objects: ClassVar[bool] = False

    def __init__(self, root: Path, classes: Classes, task: Task, splits: Sequence[str]) -> None:
        super().__init__(root, classes, task, splits)
        self.numbered = self.map_classes
        if not all(0 <= number <= MAX_NUMBER for number in self.map_classes.ids):
            self.numbered = _renumbered(self.map_classes)
            self._notes.append(f"Classes are numbered anew from 0, as label files hold 0 to {MAX_NUMBER}.")
        self.void = int(self.numbered.to_file_ids(np.array([[self.numbered.void]])).item())
        self.has_void = False

    def picture_path(self, entry: Entry) -> str:
        """In `images`."""
        return picture_path(entry)

    def write(self, entry: Entry, truth: Result) -> None:
        """Writes the index mask."""
        self._visible(truth)
        self._save_mask(entry, to_semantic(truth).labels)

    def _save_mask(self, entry: Entry, labels: npt.NDArray[Any]) -> None:
        self.has_void |= bool((labels == self.numbered.void).any())
        classes = self.numbered
        ids, path = classes.to_file_ids(labels), self._path(label_path("masks", entry))
        if max(*classes.ids, self.void if self.has_void else 0) > 255:
            numbers_image(ids).save(path)
        else:
            void = {self.void: VOC_VOID_COLOR} if self.has_void else {}
            numbers_image(ids.astype(np.uint8), dict(zip(classes.ids, classes.colors, strict=True)) | void).save(path)

    def finish(self) -> None:
        """Writes the class table."""
        ignored = self.numbered.void_ids or ((self.void,) if self.has_void else ())
        numbers = {"ids": list(self.numbered.ids), "ignore_index": [i for i in ignored if 0 <= i <= MAX_NUMBER]}
        self._write_json("classes.json", {**table(self.numbered), **numbers})


class IdsWriter(MasksWriter):
    """`images/SPLIT/NAME` with `ids/SPLIT/NAME.png`, 16-bit object numbers, and `classes.json`.

    With several classes the index masks stand beside in `masks` and say the class of each object.
    """

    title: ClassVar[str] = "folders of object ids"
    holds_objects: ClassVar[bool] = True
    needs_objects: ClassVar[bool] = True

    def write(self, entry: Entry, truth: Result) -> None:
        """Writes the object numbers and, with several classes, the index mask."""
        objects = self._singles(truth, "left out, since a file of object ids cannot mark them")
        if len(objects) > MAX_NUMBER:
            raise KirieError(f"It has {len(objects):,} objects; a 16-bit file numbers {MAX_NUMBER:,}. Write coco.")
        self.objects += self._visible(objects)
        ids = id_map(objects)
        numbers_image(ids).save(self._path(label_path("ids", entry)))
        if len(self.classes) > 1:
            of_object = np.array([0, *(objects.labels + len(self.map_classes) - len(self.classes))], np.int32)
            self._save_mask(entry, of_object[ids])

    def finish(self) -> None:
        """Writes the class table: the index masks' with several classes, else the name of the one class."""
        if len(self.classes) > 1:
            super().finish()
        else:
            self._write_json("classes.json", table(self.classes) | {"things": list(self.classes.names)})


def picture_path(entry: Entry) -> str:
    """`images/SPLIT/NAME.jpg`, without the split where there is none."""
    return "/".join(part for part in ("images", entry.split, entry.name + entry.ending) if part)


def label_path(folder: str, entry: Entry, ending: str = ".png") -> str:
    """`FOLDER/SPLIT/NAME.png`, likewise."""
    return "/".join(part for part in (folder, entry.split, entry.name + ending) if part)


def table(classes: Classes) -> dict[str, Any]:
    """The entries of `classes.json` that say names, colours and things."""
    things = [name for name, thing in zip(classes.names, classes.things, strict=True) if thing]
    return {"classes": list(classes.names), "colors": [list(color) for color in classes.colors], "things": things}


def _renumbered(classes: Classes) -> Classes:
    return replace(classes, ids=tuple(range(len(classes))), void_ids=(classes.void,))
