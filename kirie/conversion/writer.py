"""What every writer of a format is, and what several of them do: label files, objects painted over one another."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.data.dataset import Task
from kirie.errors import KirieError, counted
from kirie.masks import count_ids
from kirie.results import Instances, Result, SemanticMap, id_map, to_instances


class Entry(NamedTuple):
    """One picture of the data set to be written.

    Attributes:
        name: of its files, without ending; its own among those of its split, and of all where `Writer.one_folder`.
        ending: of the picture's file, such as `.jpg`.
        split: train, val or test; '' where the source has no splits.
        size: (H, W) as it is shown.
    """

    name: str
    ending: str
    split: str
    size: tuple[int, int]


class Writer(ABC):
    """Writes one data set: `write` for each picture in turn, then `finish`. Only counts and class names are kept.

    Attributes:
        title: the format, for a person.
        holds_objects: whether the format tells objects apart.
        needs_objects: whether it holds nothing else.
        needs_segments: whether it holds a segment for every pixel, so that only panoptic truth can become it.
        one_folder: whether the pictures of all splits lie in one folder.
        root: the folder to write into, which is there and empty.
        classes: of the truths.
        splits: of the source, empty where it has none.
        objects: how many were written.
    """

    title: ClassVar[str]
    holds_objects: ClassVar[bool] = True
    needs_objects: ClassVar[bool] = False
    needs_segments: ClassVar[bool] = False
    one_folder: ClassVar[bool] = False

    def __init__(self, root: Path, classes: Classes, task: Task, splits: Sequence[str]) -> None:
        self.root, self.classes, self.task, self.splits = root, classes, task, tuple(splits)
        # Of a map of the classes; a semantic or panoptic source has what it has.
        self.map_classes = classes.with_background() if task == "instance" else classes
        self.objects = 0
        self._told: Counter[tuple[str, str]] = Counter()
        self._notes: list[str] = []
        if task != "semantic" and not self.holds_objects:
            self._notes.append(f"Objects are no longer told apart, as {self.title} has classes alone.")

    @abstractmethod
    def picture_path(self, entry: Entry) -> str:
        """Where the picture goes, below `root`."""

    @abstractmethod
    def write(self, entry: Entry, truth: Result) -> None:
        """Writes what is known of one picture.

        Raises:
            KirieError: before anything of this picture is written, when the format cannot hold it.
        """

    def finish(self) -> None:  # noqa: B027 - formats without files of the whole data set have nothing to do
        """Writes what stands once for the whole data set."""

    def notes(self) -> list[str]:
        """What the format could not hold, a sentence each."""
        lines = [f"{counted(count, noun)} {words}." for (noun, words), count in self._told.items() if count]
        return [*dict.fromkeys(self._notes), *lines]

    def _tell(self, noun: str, words: str, count: int = 1) -> None:
        """Counts things of which `words` say what became of them."""
        self._told[noun, words] += count

    def _path(self, below: str) -> Path:
        path = self.root / below
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write_text(self, below: str, text: str) -> None:
        self._path(below).write_text(text, encoding="utf-8", errors="backslashreplace")

    def _write_json(self, below: str, value: Any) -> None:
        self._write_text(below, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def _singles(self, truth: Result, words: str) -> Instances:
        """The objects of a truth without crowds and without empty masks; `words` say what became of crowds."""
        objects = to_instances(truth)
        singles = objects.singles()
        self._tell("crowd region", words, len(objects) - len(singles))
        there = singles.masks.areas() > 0
        self._tell("object without a pixel", "left out", int((~there).sum()))
        return singles[there]

    def _visible(self, truth: Result) -> int:
        """How many objects, crowds aside, a map of the truth shows; tells what others cover."""
        if isinstance(truth, SemanticMap):
            return 0
        objects = to_instances(truth)
        areas, single = objects.masks.areas(), ~objects.crowd
        ids, counts = count_ids(id_map(objects))
        shown = int(single[ids[ids > 0] - 1].sum())
        self._tell(
            "picture", "with objects that overlap: the smaller lies on top", int(counts[ids > 0].sum() < areas.sum())
        )
        self._tell("object", "left out, since others cover all of it", int((single & (areas > 0)).sum()) - shown)
        return shown


def class_numbers(classes: Classes, published: Classes, title: str) -> npt.NDArray[np.uint16]:
    """The number in the files of a published data set for each label and for void, (void + 1,) uint16.

    Background that the published classes do not have becomes void.

    Raises:
        KirieError: when a class is none of the published ones.
    """
    table = np.full(classes.void + 1, published.void_ids[0], np.uint16)
    known = dict(zip(published.names, published.ids, strict=True))
    strange = [n for i, n in enumerate(classes.names) if n not in known and not (i == 0 and classes.has_background)]
    if strange:
        more = f" and {len(strange) - 6} more" if len(strange) > 6 else ""
        raise KirieError(
            f"{title} has {len(published)} classes of its own; not among them: {', '.join(strange[:6])}{more}. "
            "The formats masks and voc hold any classes, and so do ids, coco and yolo for objects."
        )
    for label, name in enumerate(classes.names):
        table[label] = known.get(name, published.void_ids[0])
    return table
