"""Data sets in the folders of Pascal VOC, Cityscapes and ADE20K, as `kirie.data` and their own programs read them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from kirie.class_lists import ADE20K, CITYSCAPES, VOC, VOC_VOID_COLOR
from kirie.classes import Classes, palette
from kirie.conversion.folders import table
from kirie.conversion.writer import Entry, Writer, class_numbers
from kirie.data.dataset import Task
from kirie.errors import KirieError
from kirie.files import numbers_image
from kirie.results import Instances, Result, id_map, to_instances, to_semantic

VOID = 255
BLACK = (0, 0, 0)


class VocWriter(Writer):
    """`JPEGImages`, `SegmentationClass`, the lists in `ImageSets/Segmentation`, and `SegmentationObject` for objects.

    Numbers are 0 to 254 in the order of the classes, of which the first is the background where there is one, and 255
    for void; objects are numbered from 1 in each picture, and a crowd is 255. `classes.json` and `labelmap.txt` name
    classes other than VOC's own.
    """

    title: ClassVar[str] = "Pascal VOC"
    one_folder: ClassVar[bool] = True

    def __init__(self, root: Path, classes: Classes, task: Task, splits: Sequence[str]) -> None:
        super().__init__(root, classes, task, splits)
        if len(self.map_classes) > VOID:
            raise KirieError(
                f"Pascal VOC holds at most {VOID} classes, the background included, and here are "
                f"{len(self.map_classes)}. masks and coco hold more."
            )
        if self.map_classes.ids != tuple(range(len(self.map_classes))):
            self._notes.append("The numbers of the classes are 0, 1, 2... in the new files, in their order.")
        self.lists: dict[str, list[str]] = {split: [] for split in splits or ("default",)}

    def picture_path(self, entry: Entry) -> str:
        """In `JPEGImages`, with the ending that the picture has."""
        if entry.ending.lower() not in (".jpg", ".jpeg"):
            self._tell("picture", "kept in another format than JPEG; programs that ask for .jpg need it saved anew")
        return f"JPEGImages/{entry.name}{entry.ending}"

    def write(self, entry: Entry, truth: Result) -> None:
        """Writes the class map and, where there are objects, the map of their numbers."""
        if self.task != "semantic":
            numbers = self._numbers(to_instances(truth))
            colors = {0: BLACK, **dict(enumerate(palette(VOID - 1), 1)), VOID: VOC_VOID_COLOR}
            numbers_image(numbers, colors).save(self._path(f"SegmentationObject/{entry.name}.png"))
        labels = to_semantic(truth).labels.astype(np.uint8)
        colors = {**dict(enumerate(self.map_classes.colors)), VOID: VOC_VOID_COLOR}
        numbers_image(labels, colors).save(self._path(f"SegmentationClass/{entry.name}.png"))
        self.lists[entry.split or "default"].append(entry.name)

    def _numbers(self, objects: Instances) -> npt.NDArray[np.uint8]:
        crowd = objects.crowd
        single = int((~crowd).sum())
        if single >= VOID:
            raise KirieError(
                f"It has {single} objects; Pascal VOC numbers up to {VOID - 1} in a picture. ids and coco hold more."
            )
        self._tell("crowd region", "marked as void in the files of objects", len(objects) - single)
        self.objects += self._visible(objects)
        return id_map(objects, np.where(crowd, VOID, np.cumsum(~crowd)).tolist()).astype(np.uint8)

    def finish(self) -> None:
        """Writes the lists and, for classes that are not VOC's own, their tables."""
        for name, stems in self.lists.items():
            self._write_text(f"ImageSets/Segmentation/{name}.txt", "".join(f"{stem}\n" for stem in stems))
        if self.map_classes != VOC:
            colors = [",".join(map(str, color)) for color in self.map_classes.colors]
            lines = [f"{name}:{color}::\n" for name, color in zip(self.map_classes.names, colors, strict=True)]
            self._write_text("labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(lines))
            self._write_json("classes.json", {**table(self.map_classes), "ignore_index": VOID})


class CityscapesWriter(Writer):
    """`leftImg8bit/SPLIT/CITY` and `gtFine/SPLIT/CITY` with `*_labelIds.png`, and `*_instanceIds.png` for objects.

    Classes are those of the 19 with the same names, by their published numbers; void and the background are 0,
    unlabeled. An object has a thousand times the number of its class and its own number from 0; a crowd has the number
    of its class, as groups have there. The city is what stands before the two numbers of a name such as
    `aachen_000000_000019`; other names lie in `pictures`.
    """

    title: ClassVar[str] = "Cityscapes"

    def __init__(self, root: Path, classes: Classes, task: Task, splits: Sequence[str]) -> None:
        super().__init__(root, classes, task, splits)
        self.numbers = class_numbers(self.map_classes, CITYSCAPES, self.title)
        if self.map_classes.has_background:
            self._notes.append("The background becomes unlabeled (0), which is void.")
        if not splits:
            self._notes.append("All pictures are in train, since Cityscapes has a folder for each split.")

    def picture_path(self, entry: Entry) -> str:
        """In `leftImg8bit`, with the ending that the picture has."""
        if entry.ending.lower() != ".png":
            self._tell("picture", "kept in another format than PNG; the data set's own scripts need it saved anew")
        return self._place(entry, "leftImg8bit", entry.ending)

    def write(self, entry: Entry, truth: Result) -> None:
        """Writes the class map and, where there are objects, the map of their numbers."""
        labels = self.numbers[to_semantic(truth).labels]
        if self.task != "semantic":
            objects = self._things(to_instances(truth))
            ids = id_map(objects, self._numbers(objects))
            shown = numbers_image(np.where(ids > 0, ids, labels))
            shown.save(self._path(self._place(entry, "gtFine_instanceIds", ".png")))
            self.objects += self._visible(objects)
        numbers_image(labels.astype(np.uint8)).save(self._path(self._place(entry, "gtFine_labelIds", ".png")))

    def _things(self, objects: Instances) -> Instances:
        """The objects of classes that have objects in Cityscapes; the others stay in the class map."""
        numbers = self._class_numbers(objects)
        things = np.isin(numbers, [i for i, thing in zip(CITYSCAPES.ids, CITYSCAPES.things, strict=True) if thing])
        self._tell("object", "of classes without objects in Cityscapes, kept as class alone", int((~things).sum()))
        return objects[things]

    def _class_numbers(self, objects: Instances) -> npt.NDArray[np.int64]:
        labels = objects.labels + len(self.map_classes) - len(self.classes)
        return self.numbers[labels].astype(np.int64)

    def _numbers(self, objects: Instances) -> list[int]:
        """The number of each object in `*_instanceIds.png`."""
        of_class: Counter[int] = Counter()
        numbers = []
        for number, is_crowd in zip(self._class_numbers(objects).tolist(), objects.crowd.tolist(), strict=True):
            numbers.append(number if is_crowd else 1000 * number + of_class[number])
            of_class[number] += not is_crowd
        most = max(of_class.values(), default=0)
        if most > 1000:
            raise KirieError(f"It has {most:,} objects of one class; Cityscapes numbers 1000. ids and coco hold more.")
        return numbers

    @staticmethod
    def _place(entry: Entry, kind: str, ending: str) -> str:
        stem = entry.name.removesuffix("_leftImg8bit")
        city = re.fullmatch(r"(.+)_\d{6}_\d{6}", stem)
        folder = kind.partition("_")[0]
        return f"{folder}/{entry.split or 'train'}/{city[1] if city else 'pictures'}/{stem}_{kind}{ending}"


class Ade20kWriter(Writer):
    """`images/training` and `annotations/training`, with `validation` and `testing`, and `objectInfo150.txt`.

    Classes are those of the 150 with the same names, by their published numbers 1 to 150; void and the background are
    0.
    """

    title: ClassVar[str] = "ADE20K scene parsing"
    holds_objects: ClassVar[bool] = False
    folders: ClassVar[dict[str, str]] = {"train": "training", "val": "validation", "test": "testing", "": "training"}

    def __init__(self, root: Path, classes: Classes, task: Task, splits: Sequence[str]) -> None:
        super().__init__(root, classes, task, splits)
        self.numbers = class_numbers(self.map_classes, ADE20K, self.title)
        if self.map_classes.has_background:
            self._notes.append("The background becomes 0, which is void.")
        if not splits:
            self._notes.append("All pictures are in training, since ADE20K has a folder for each split.")

    def picture_path(self, entry: Entry) -> str:
        """In `images`, with the ending that the picture has."""
        return f"images/{self.folders[entry.split]}/{entry.name}{entry.ending}"

    def write(self, entry: Entry, truth: Result) -> None:
        """Writes the class map."""
        self._visible(truth)
        path = self._path(f"annotations/{self.folders[entry.split]}/{entry.name}.png")
        numbers_image(self.numbers[to_semantic(truth).labels].astype(np.uint8)).save(path)

    def finish(self) -> None:
        """Writes the list of the 150 classes."""
        rows = zip(ADE20K.ids, ADE20K.things, ADE20K.names, strict=True)
        lines = [f"{number}\t{0 if thing else 1}\t{name}\n" for number, thing, name in rows]
        self._write_text("objectInfo150.txt", "Idx\tStuff\tName\n" + "".join(lines))
