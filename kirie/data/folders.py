"""A data set in folders: pictures beside label files in the layouts and of the kinds that are in use."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.data.dataset import Sample, Task
from kirie.data.fault import Fault, without_pixels
from kirie.data.folder_layout import find_layout
from kirie.data.geometry import in_fours
from kirie.data.labels import LabelFormat, find_format, majority_classes, read_labels, read_masks
from kirie.data.layouts import FolderSettings, Layout, Pair
from kirie.data.objects import Objects
from kirie.data.pair_table import PairTable
from kirie.data.splits import SPLITS, expect_split
from kirie.errors import KirieError, counted
from kirie.masks import Crop, Masks
from kirie.reading.images import read_image
from kirie.results import Instances, Result, SemanticMap, to_semantic

__all__ = ["FolderDataset", "FolderSettings"]


class FolderDataset:
    """Pictures and their label files below a folder; see `layouts.LAYOUTS` and `labels.LabelFormat` for what is known.

    Other formats (`voc`, `cityscapes`, `ade20k`, `coco`, `yolo`) are this class with their own `recognises`,
    `find_layout`, `find_format` and `find_objects`.

    Index, binary and colour-coded masks give a SemanticMap; object ids and a file per object give Instances of one
    class, or of several where another mask says them, or with task "semantic" a SemanticMap with background. Only paths
    are held in memory; opening looks at a few label files (at all of them when they are index files without a class
    table).

    Attributes:
        classes: the classes of the truth.
        task: "semantic" or "instance".
        split: train, val, test, or None for all pictures.
        form: kind of the label files.
        words: the layout, for a person.

    Raises:
        KirieError: when the folder, the split, the classes or the task do not fit what is there.
    """

    classes: Classes
    task: Task
    splits: tuple[str, ...]

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        task: str | None = None,
        settings: FolderSettings | None = None,
    ) -> None:
        self.path = Path(path)
        self.settings = settings or FolderSettings()
        layout = self.find_layout(self.path, self.settings, task)
        self.form: LabelFormat = self.find_format(self.path, layout, self.settings, task)
        layout = replace(layout, pairs=PairTable(layout.pairs))
        self.task = fitting_task(self.path, self.form, task)
        self.words, self.unfound, self.left_out = layout.words, layout.unfound, layout.left_out
        self.splits = () if layout.seeded else tuple(s for s in SPLITS if s in {pair.split for pair in layout.pairs})
        as_map = self.form.has_instances and self.task == "semantic"
        self.classes = self.form.classes.with_background() if as_map else self.form.classes
        self._layout = layout
        self.split, self._pairs = _chosen(self.path, split, layout)

    @staticmethod
    def recognises(path: str | Path, task: str | None = None, settings: FolderSettings | None = None) -> bool:
        """Whether this format may be in a path: any folder; opening it says what does not fit."""
        return Path(path).is_dir()

    @staticmethod
    def find_layout(path: Path, settings: FolderSettings, task: str | None) -> Layout:
        """Which picture belongs to which label file and which split: what a format of folders says of its own.

        Raises:
            KirieError: when the files do not lie as the format has them.
        """
        return find_layout(path, settings, task)

    @staticmethod
    def find_format(path: Path, layout: Layout, settings: FolderSettings, task: str | None) -> LabelFormat:
        """What the label files mean, and the classes: likewise.

        Raises:
            KirieError: when there are no label files, or classes must be told and are not.
        """
        return find_format(path, layout, settings, task)

    @staticmethod
    def find_objects(pair: Pair, form: LabelFormat, size: tuple[int, int] | None) -> Objects:
        """The objects of a picture in a format whose label files tell objects apart (`form.has_instances`): likewise.

        Args:
            pair: the picture and its label file.
            form: as `find_format` gave it.
            size: (H, W) of the picture; None where it could not be read.

        Raises:
            KirieError: when the label file cannot be read at all.
        """
        masks, empty = read_masks(pair.mask, form)
        masks = Masks(size) if masks is None and size is not None else masks
        faults: tuple[Fault, ...] = ()
        if empty:
            faults = (without_pixels(pair.mask, pair.mask, empty),)
        if masks is None:
            return Objects(None, faults)
        if form.class_masks is not None:
            return _with_classes(pair, masks, form, form.class_masks)
        return Objects(Instances.from_masks(masks, np.zeros(len(masks), np.int64), form.classes), faults)

    def only(self, split: str | None, *, own_size: bool = False) -> FolderDataset:
        """The same data set with the pictures of another split, without looking at any file again.

        Args:
            split: train, val or test, of the whole folder whatever this data set was opened with; None for all.
            own_size: whether pictures keep their own size, whatever `settings.short_side` says.

        Raises:
            KirieError: when there is no such split or it has no pictures.
        """
        other = copy.copy(self)
        other.split, other._pairs = _chosen(self.path, split, self._layout)
        if own_size:
            other.settings = replace(self.settings, short_side=None)
        return other

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        """The path of a sample's picture below the data set's folder, or of its own folder."""
        return self._pairs[index].name

    def file_facts(self, index: int) -> dict[str, Any]:
        """The paths of the files of a sample: `image`, `mask` ('' when it has none), and `classes` where it is read."""
        pair = self._pairs[index]
        more = {} if self.form.class_masks is None else {"classes": pair.classes}
        return {"image": pair.image, "mask": pair.mask, **more}

    def __getitem__(self, index: int) -> Sample:
        """A picture with its truth.

        Raises:
            IndexError: when there is no sample of that number.
            KirieError: when a file is missing or broken, sizes differ, or the label file holds unknown ids.
        """
        pair = self._pairs[operator.index(index)]
        image = read_image(pair.image, self.settings.channels)
        if not pair.mask:
            raise missing_mask(pair.image)
        size = (image.shape[0], image.shape[1])
        truth = self._instances(pair, size) if self.form.has_instances else self._map(pair.image, pair.mask, size)
        target = resized_size(size, self.settings.short_side)
        if target != size:
            image, truth = resize_image(image, target), resize_truth(truth, target)
        return Sample(image, to_semantic(truth) if self.task == "semantic" else truth, pair.name)

    def _instances(self, pair: Pair, size: tuple[int, int]) -> Result:
        truth, _, refused = self.find_objects(pair, self.form, size)
        if truth is not None:
            check_size(pair.image, size, pair.mask, truth.size)
        if truth is None or refused:
            raise KirieError(refused or f"{pair.mask} does not tell the objects of {pair.image}.")
        return truth

    def _map(self, image: str, mask: str, size: tuple[int, int]) -> Result:
        labels, unknown = read_labels(mask, self.form)
        check_size(image, size, mask, labels.shape)
        if unknown:
            raise KirieError(f"{mask} {unknown_text(unknown, self.form)} {unknown_mend(mask, self.form)}")
        return SemanticMap(labels, self.form.classes)


def fitting_task(path: Path, form: LabelFormat, task: str | None) -> Task:
    """The task that was asked for, when label files of this kind serve it; their natural one for None.

    Raises:
        KirieError: when they cannot.
    """
    if task is None:
        return "instance" if form.has_instances else "semantic"
    if task == "semantic":
        return "semantic"
    if task == "instance":
        if form.has_instances:
            return "instance"
        raise KirieError(
            f"The masks in {path} are {form.kind} masks: they say the class of a pixel, not which object it "
            "belongs to, so they cannot train task 'instance'. Use task 'semantic', or label files with object ids "
            "(a folder ids with one number per object, or data.kind: ids)."
        )
    if task == "panoptic":
        raise KirieError(f"kirie reads no panoptic truth yet; read {path} with task semantic or instance.")
    raise KirieError(f"There is no task {task!r}; expected semantic or instance.")


def _chosen(path: Path, split: str | None, layout: Layout) -> tuple[str | None, Sequence[Pair]]:
    """The split by its own name, and its pictures.

    Raises:
        KirieError: when there is no such split or it has no pictures.
    """
    wanted = expect_split(split)
    chosen = (pair for pair in layout.pairs if wanted in (None, pair.split))
    pairs = PairTable({pair._replace(split=""): pair for pair in chosen}.values())  # once where two splits have it
    if not pairs:
        raise _no_pictures(path, str(wanted), layout)
    return wanted, pairs


def _with_classes(pair: Pair, masks: Masks, form: LabelFormat, class_form: LabelFormat) -> Objects:
    """Objects with the class that most of their pixels have in another mask; those where it is no thing are left out.

    Raises:
        KirieError: when that mask cannot be read.
    """
    if not pair.classes:
        what = f"{pair.mask} tells the objects of {pair.image} apart, but no mask says their classes."
        fault = Fault("fault", "picture without class mask", what, (pair.image,), "Add the mask of classes.")
        return Objects(None, (fault,), what)
    labels, unknown = read_labels(pair.classes, class_form)
    check_size(pair.mask, masks.size, pair.classes, labels.shape)
    if unknown:
        what, mend = f"{pair.classes} {unknown_text(unknown, class_form)}", unknown_mend(pair.classes, class_form)
        return Objects(None, (Fault("fault", "unknown ids", what, (pair.classes,), mend),), f"{what} {mend}")
    things = np.full(len(class_form.classes) + 1, -1, np.int64)  # the last is that of objects that are all void
    things[[class_form.classes.index(name) for name in form.classes.names]] = np.arange(len(form.classes))
    found = things[majority_classes(masks, labels, len(class_form.classes))]
    kept = np.flatnonzero(found >= 0)
    truth = Instances.from_masks(masks[kept], found[kept], form.classes)
    if len(kept) == len(masks):
        return Objects(truth)
    what = f"{pair.mask} has {counted(len(masks) - len(kept), 'object')} that mostly lie on no thing in {pair.classes}."
    mend = "Right for regions that are no objects; else mark their pixels with the class there."
    return Objects(truth, (Fault("note", "object without class", what, (pair.mask, pair.classes), mend),))


def _no_pictures(path: Path, split: str, layout: Layout) -> KirieError:
    counts = {s: sum(pair.split == s for pair in layout.pairs) for s in SPLITS}
    there = ", ".join(f"{s} {count}" for s, count in counts.items() if count) or "none in any split"
    what = f"{path} has no pictures in split {split} ({there}; {layout.words})"
    gap = next((gap for gap in layout.gaps if gap.split == split), None)
    if gap is not None:
        return KirieError(f"{what}: {gap.why} {gap.mend}")
    # Without a gap a seeded split is empty because it has no share.
    mend = f"add the folder or list of {split}"
    if layout.seeded:
        mend = (
            "lower data.val_fraction" if split == "train" else f"set data.{split}_fraction, its share of the pictures"
        )
    return KirieError(f"{what}; {mend}.")


# Faults that reading and inspecting tell in the same words


def missing_mask(image: str) -> KirieError:
    """The error for a picture without label file."""
    return KirieError(f"{image} has no label file; add one with its stem, or take the picture out of the data set.")


def check_size(image: str, size: tuple[int, ...], mask: str, mask_size: tuple[int, ...]) -> None:
    """Nothing, when picture and label file have the same (H, W).

    Raises:
        KirieError: when they differ.
    """
    if tuple(size) == tuple(mask_size):
        return
    turned = tuple(size) == tuple(mask_size)[::-1]
    hint = " It looks turned by 90 degrees, as pictures of a phone are that carry an EXIF rotation." if turned else ""
    raise KirieError(
        f"{image} is {size[0]} x {size[1]} pixels (H x W) but its label file {mask} is {mask_size[0]} x "
        f"{mask_size[1]}.{hint} Save the label file at the size of the picture as it is shown."
    )


def unknown_text(unknown: dict[str, int], form: LabelFormat) -> str:
    """What is wrong with a label file whose ids or colours are no class, with pixel counts."""
    most = sorted(unknown.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{key} ({counted(count, 'pixel')})" for key, count in most[:6])
    more = f" and {len(most) - 6} more" if len(most) > 6 else ""
    what = "colours" if form.kind == "colour" else "ids"
    return f"holds {what} that are no class: {listed}{more}; the classes are {_class_list(form)}."


def unknown_mend(mask: str, form: LabelFormat) -> str:
    """How to mend unknown ids or colours in a label file."""
    if mask.lower().endswith((".jpg", ".jpeg")):
        return "JPEG changes the numbers in a mask: save masks as PNG."
    if form.kind == "colour":
        return (
            "Add the colours to classes.json (colors, or ignore_colors for void), or save the mask without smoothing."
        )
    if form.kind == "binary":
        return "Save the mask with two numbers and without smoothing, or say data.kind: index with data.classes."
    return "Add them to classes.json (classes, or ignore_index for void) or to data.ignore, or mend the file."


def _class_list(form: LabelFormat) -> str:
    keys: list[Any] = list(form.classes.colors if form.kind == "colour" else form.classes.ids)
    pairs = [f"{key} {name}" for key, name in zip(keys, form.classes.names, strict=True)]
    void = list(form.void_colors if form.kind == "colour" else form.classes.void_ids)
    shown = ", ".join(pairs[:12]) + (f" and {len(pairs) - 12} more" if len(pairs) > 12 else "")
    return shown + (f"; void is {', '.join(map(str, void[:6]))}" if void else "")


# Size


def resized_size(size: tuple[int, int], short_side: int | None, long_side: int | None = None) -> tuple[int, int]:
    """(H, W) with the shorter side `short_side` long and the shape kept; the same size for None.

    Where the longer side would then have more than `long_side` pixels it has that many.
    """
    if short_side is None:
        return size
    scale = short_side / min(size)
    if long_side is not None:
        scale = min(scale, long_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_image(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture (H, W, C) at another (H, W): averaged when it shrinks, bilinear when it grows."""
    smaller = size[0] < image.shape[0]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR

    def resized(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.asarray(cv2.resize(planes, size[::-1], interpolation=how), np.uint8).reshape(*size, -1)

    return in_fours(resized, image)


def resize_truth(truth: Result, size: tuple[int, int]) -> Result:
    """A truth at another (H, W), each pixel from the nearest one; objects that vanish are dropped.

    Raises:
        KirieError: when it is neither a SemanticMap nor Instances.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, truth.size, strict=True)
    )
    if isinstance(truth, SemanticMap):
        return SemanticMap(truth.labels[rows[:, None], columns], truth.classes)
    if not isinstance(truth, Instances):
        raise KirieError(f"A truth to resize is a SemanticMap or Instances, got {type(truth).__name__}.")
    crops, kept = [], []
    for index, (top, left, bits) in enumerate(truth.masks.crops()):
        # The rows and columns of the new picture that fall into the crop.
        first_row, last_row = np.searchsorted(rows, [top, top + bits.shape[0]])
        first_column, last_column = np.searchsorted(columns, [left, left + bits.shape[1]])
        picked = bits[rows[first_row:last_row, None] - top, columns[first_column:last_column] - left]
        if picked.any():
            crops.append(Crop(int(first_row), int(first_column), picked))
            kept.append(index)
    return truth.with_masks(kept, Masks.from_crops(crops, size))
