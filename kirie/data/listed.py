"""Data sets of one's own: samples that are at hand or made by functions, by the name `package.module:function` too."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kirie.classes import Classes
from kirie.data.dataset import Dataset, Sample, Task
from kirie.data.layouts import FolderSettings
from kirie.data.splits import SPLITS, expect_split
from kirie.errors import KirieError
from kirie.lookup import look_up
from kirie.results import Instances, PanopticMap, Result, SemanticMap, things_of, to_semantic

Entry = Sample | Callable[[], Sample]
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # package.module:name
_TASKS: dict[type, Task] = {SemanticMap: "semantic", Instances: "instance", PanopticMap: "panoptic"}


class SampleList:
    """A data set of samples that are at hand, or of functions that read one when it is asked for.

    Truths of objects serve task "semantic" too, with background, and panoptic ones serve all three tasks; see
    `as_task`. Where workers read ahead they have copies of the list, so functions that read are better than samples.

    Args:
        samples: by split ("train", "val", "test") its samples, each a `Sample` or a function without arguments that
            returns one, in anything with a length and numbers; or a function that returns those of a split.
        split: which split this one shows; None for all.
        task: which truth the samples get; None for the one that they have.

    Attributes:
        classes: those of the first sample's truth; all others must have the same.

    Raises:
        KirieError: here and when a sample is asked for: when a split is unknown or has no samples, or a sample is none,
            has other classes than the first, or does not serve the task.
    """

    unfound: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __init__(
        self,
        samples: Mapping[str, Sequence[Entry]] | Callable[[str], Sequence[Entry]],
        split: str | None = None,
        *,
        task: str | None = None,
    ) -> None:
        if task not in (None, *_TASKS.values()):
            raise KirieError(f"There is no task {task!r:.60}; expected {', '.join(_TASKS.values())}.")
        named = {str(expect_split(name)) for name in samples} if isinstance(samples, Mapping) else {"train", "val"}
        self.splits = tuple(name for name in SPLITS if name in named)
        self._samples, self._asked = samples, task
        self._show(split)
        truth = self._made(0).truth
        self.classes: Classes = truth.classes
        self.task: Task = _TASKS[type(truth)]

    def _show(self, split: str | None) -> None:
        self.split = expect_split(split)
        shown = self.splits if self.split is None else (self.split,)
        self._parts = [(name, self._of(name)) for name in shown]
        if not len(self):
            raise KirieError(f"There are no samples in split {self.split}; give some, or name another split.")

    def _of(self, split: str) -> Sequence[Entry]:
        """The samples of a split; of none where a mapping does not have it."""
        if not isinstance(self._samples, Mapping):
            return self._samples(split)
        return next((part for name, part in self._samples.items() if expect_split(name) == split), ())

    def only(self, split: str | None, *, own_size: bool = False) -> SampleList:
        """The same data set with the samples of another split, None for all; they always have their own size.

        Raises:
            KirieError: when there is no such split or it has no samples.
        """
        other = copy.copy(self)
        other._show(split)
        return other

    def __len__(self) -> int:
        return sum(len(part) for _, part in self._parts)

    def _entry(self, index: int) -> tuple[str, int, Entry]:
        """The split, the number in it, and the sample of a number."""
        number = operator.index(index)
        number += len(self) if number < 0 else 0
        for split, part in self._parts:
            if 0 <= number < len(part):
                return split, number, part[number]
            number -= len(part)
        raise IndexError(f"there is no sample {index} of {len(self)}")

    def name(self, index: int) -> str:
        """The name of a sample; split and number where only reading it would tell."""
        split, number, entry = self._entry(index)
        return entry.name if isinstance(entry, Sample) else f"{split} {number}"

    def file_facts(self, index: int) -> dict[str, Any]:
        """Nothing: what a sample is read from is its own affair."""
        self._entry(index)
        return {}

    def __getitem__(self, index: int) -> Sample:
        """A picture with its truth.

        Raises:
            IndexError: when there is no sample of that number.
            KirieError: see the class.
        """
        sample = self._made(index)
        if sample.truth.classes != self.classes:
            raise KirieError(
                f"{sample.name} has other classes than the first sample: {', '.join(sample.truth.classes.names[:8])}, "
                f"not {', '.join(self.classes.names[:8])}. Give all truths the same Classes."
            )
        return sample

    def _made(self, index: int) -> Sample:
        split, number, entry = self._entry(index)
        sample = entry() if callable(entry) else entry
        if not isinstance(sample, Sample):
            what = f"Sample {number} of split {split}"
            raise KirieError(f"{what} is a {type(sample).__name__}; expected a kirie Sample, or a function giving one.")
        image = sample.image
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or not image.size:
            came = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise KirieError(f"The image of {sample.name} must be uint8 of shape (H, W, C), got {came}.")
        if type(sample.truth) not in _TASKS or sample.truth.size != image.shape[:2]:
            came = str(sample.truth.size) if type(sample.truth) in _TASKS else f"a {type(sample.truth).__name__}"
            raise KirieError(
                f"The truth of {sample.name} must be a SemanticMap, Instances or PanopticMap of the size of the image, "
                f"{image.shape[:2]}, got {came}."
            )
        truth = sample.truth if self._asked is None else as_task(sample.truth, self._asked, sample.name)
        return Sample(image, truth, sample.name)


def as_task(truth: Result, task: str, name: str) -> Result:
    """A truth as a task has it: objects without their numbers, or the things of a panoptic map alone.

    Args:
        truth: of any type.
        task: "semantic", "instance" or "panoptic".
        name: of the sample, for messages.

    Raises:
        KirieError: when the truth does not tell what the task asks for.
    """
    if task == _TASKS[type(truth)]:
        return truth
    if task == "semantic":
        return to_semantic(truth)
    if task == "instance" and isinstance(truth, PanopticMap):
        return things_of(truth)
    raise KirieError(f"The truth of {name} is a {type(truth).__name__}, which cannot serve task {task!r}.")


def is_own(place: str | Path) -> bool:
    """Whether a place names a data set of the user's code, `package.module:function`, and is no file or folder."""
    return _OWN.fullmatch(str(place)) is not None and not Path(place).exists()


def own_dataset(
    place: str | Path, split: str | None = None, *, task: str | None = None, settings: FolderSettings | None = None
) -> Dataset:
    """The data set that a `package.module:function` of the user's names.

    Only for what a user typed or wrote in a recipe, as it imports their code; never for what a model file says.

    Args:
        place: the name. A function is called as f(split) and returns the samples of a split, as `SampleList` has them,
            or an object that follows `Dataset`; such an object may also be named itself.
        split: train, val or test; None for all.
        task: semantic, instance or panoptic; None for what the truth is.
        settings: refused where they say how folders are read.

    Raises:
        KirieError: when it cannot be imported, is none of these or serves another task, or a setting does not apply.
    """
    if settings is not None:
        of_folders = [f.name for f in fields(FolderSettings) if f.name != "channels"]
        settings.refuse(*of_folders, format_name=f"{place}, your own code,")
    found = look_up(str(place))
    if not callable(found):
        return _fitting(found.only(split) if _is_dataset(found) else found, place, task)
    samples = cache(found)  # it may read a long list
    given: Any = samples(split or "train")
    return _fitting(given, place, task) if _is_dataset(given) else SampleList(samples, split, task=task)


def _is_dataset(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("classes", "task", "only", "__len__", "__getitem__"))


def _fitting(value: Any, place: str | Path, task: str | None) -> Dataset:
    if not _is_dataset(value):
        raise KirieError(
            f"{place} is a {type(value).__name__}; expected a function f(split) that returns samples, or an object "
            "after kirie.data.dataset.Dataset."
        )
    if task not in (None, value.task):
        raise KirieError(f"{place} has truth for task {value.task!r}, not for {task!r}.")
    dataset: Dataset = value
    return dataset
