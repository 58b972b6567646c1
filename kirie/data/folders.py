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
from kirie.data.class_masks import with_classes
from kirie.data.dataset import Sample, Task
from kirie.data.fault import Fault, without_pixels
from kirie.data.folder_layout import find_layout
from kirie.data.gaps import parted
from kirie.data.geometry import in_fours
from kirie.data.label_faults import check_size, missing_mask, unknown_mend, unknown_text
from kirie.data.labels import LabelFormat, find_format, read_labels, read_masks
from kirie.data.layouts import FolderSettings, Layout, Pair, folded
from kirie.data.objects import Objects
from kirie.data.pair_table import PairTable
from kirie.data.panoptic_maps import recounted
from kirie.data.splits import SPLITS, expect_split
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.reading.images import read_image
from kirie.results import Instances, PanopticMap, Result, SemanticMap, to_semantic

__all__ = ["FolderDataset", "FolderSettings"]

LONGEST = 16  # times as long as its shorter side a resized picture may be


class FolderDataset:
    """Pictures and their label files below a folder; see `layouts.LAYOUTS` and `labels.LabelFormat` for what is known.

    Other formats (`voc`, `cityscapes`, `ade20k`, `coco_panoptic`, `coco`, `yolo`) are this class with their own
    `recognises`, `find_layout`, `find_format` and `find_objects`.

    Index, binary and colour-coded masks give a SemanticMap; object ids and a file per object give Instances of one
    class, or of several where another mask says them, or with task "semantic" a SemanticMap with background. Object ids
    with such a mask give PanopticMaps too, with task "panoptic". Only paths are held in memory; opening looks at a few
    label files (at all of them when they are index files without a class table).

    Attributes:
        classes: the classes of the truth.
        task: "semantic", "instance" or "panoptic".
        split: train, val, test, or None for all pictures.
        form: kind of the label files.
        words: the layout, for a person.

    Raises:
        KirieError: when the folder, the split, the classes or the task do not fit what is there.
    """

    classes: Classes
    task: Task
    splits: tuple[str, ...]
    _unknown_is_void = False

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
        layout = folded(layout, self.settings)
        layout = replace(layout, pairs=PairTable(layout.pairs))
        self.task = fitting_task(self.path, self.form, task)
        self.words, self.unfound, self.left_out = layout.words, layout.unfound, layout.left_out
        self.splits = () if layout.seeded else tuple(s for s in SPLITS if s in {pair.split for pair in layout.pairs})
        as_map = self.form.has_instances and self.task == "semantic"
        if self.settings.gap and not as_map:
            raise KirieError(
                f"data.gap is {self.settings.gap}, which parts objects that touch where a model learns classes of "
                f"pixels from them; here it learns {self.task} truth from {self.form.kind} label files: leave it out."
            )
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
        """The objects of a picture in a format whose label files tell objects apart: likewise.

        They are Instances where `form.has_instances`, and where `form.segments` the segments of a PanopticMap.

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
            return with_classes(pair, masks, form, form.class_masks)
        return Objects(Instances.from_masks(masks, np.zeros(len(masks), np.int64), form.classes), faults)

    def with_unknown_as_void(self) -> FolderDataset:
        """The same data set with ids and colours that are no class as void, in place of an error."""
        other = copy.copy(self)
        other._unknown_is_void = True
        return other

    def only(self, split: str | None, *, own_size: bool = False) -> FolderDataset:
        """The same data set with the pictures of another split, without looking at any file again.

        Args:
            split: train, val or test, of the whole folder whatever this data set was opened with; None for all.
            own_size: whether pictures keep their own size and objects their pixels, whatever `settings.short_side` and
                `settings.gap` say.

        Raises:
            KirieError: when there is no such split or it has no pictures.
        """
        other = copy.copy(self)
        other.split, other._pairs = _chosen(self.path, split, self._layout)
        if own_size:
            other.settings = replace(self.settings, short_side=None, gap=0)
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
        with_objects = self.form.has_instances or self.form.segments
        truth = self._objects(pair, size) if with_objects else self._map(pair.image, pair.mask, size)
        if self.settings.gap and isinstance(truth, Instances):
            truth = parted(truth, self.settings.gap)
        target = resized_size(size, self.settings.short_side)
        if target != size:
            image, truth = resize_image(image, target), resize_truth(truth, target)
        return Sample(image, to_semantic(truth) if self.task == "semantic" else truth, pair.name)

    def _objects(self, pair: Pair, size: tuple[int, int]) -> Result:
        truth, _, refused = self.find_objects(pair, self.form, size)
        if truth is not None:
            check_size(pair.image, size, pair.mask, truth.size)
        if truth is None or refused:
            raise KirieError(refused or f"{pair.mask} does not tell the objects of {pair.image}.")
        return truth

    def _map(self, image: str, mask: str, size: tuple[int, int]) -> Result:
        labels, unknown = read_labels(mask, self.form)
        check_size(image, size, mask, labels.shape)
        if unknown and not self._unknown_is_void:
            raise KirieError(f"{mask} {unknown_text(unknown, self.form)} {unknown_mend(mask, self.form)}")
        return SemanticMap(labels, self.form.classes)


def fitting_task(path: Path, form: LabelFormat, task: str | None) -> Task:
    """The task that was asked for, when label files of this kind serve it; their natural one for None.

    Raises:
        KirieError: when they cannot.
    """
    natural: Task = "panoptic" if form.segments else "instance" if form.has_instances else "semantic"
    if task is None or task == natural:
        return natural
    if task == "semantic":
        return "semantic"
    if task == "instance":
        raise KirieError(
            f"The masks in {path} are {form.kind} masks: they say the class of a pixel, not which object it "
            "belongs to, so they cannot train task 'instance'. Use task 'semantic', or label files with object ids "
            "(a folder ids with one number per object, or data.kind: ids)."
        )
    if task == "panoptic":
        raise KirieError(
            f"The label files in {path} ({form.kind}) are no panoptic truth, which says both the class of every pixel "
            f"and the object that it belongs to; they serve task {natural!r}. COCO panoptic does (panoptic_train.json "
            "with its PNG files), Cityscapes with *_instanceIds.png, Pascal VOC with SegmentationObject, and a folder "
            "ids beside masks with a class table that names the things."
        )
    raise KirieError(f"There is no task {task!r}; expected semantic, instance or panoptic.")


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


# Size


def resized_size(size: tuple[int, int], short_side: int | None, long_side: int | None = None) -> tuple[int, int]:
    """(H, W) with the shorter side `short_side` long and the shape kept; the same size for None.

    Where the longer side would then have more than `long_side` pixels it has that many. Without a `long_side` that is
    16 times the short side: a strip of 17 x 4000 pixels would grow to gigabytes otherwise.
    """
    if short_side is None:
        return size
    longest = LONGEST * short_side if long_side is None else long_side
    scale = min(short_side / min(size), longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_image(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture (H, W, C) at another (H, W): averaged when it shrinks, bilinear when it grows."""
    smaller = size[0] < image.shape[0]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR

    def resized(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.asarray(cv2.resize(planes, size[::-1], interpolation=how), np.uint8).reshape(*size, -1)

    return in_fours(resized, image)


def resize_truth(truth: Result, size: tuple[int, int]) -> Result:
    """A truth at another (H, W), each pixel from the nearest one; objects and segments that vanish are dropped."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, truth.size, strict=True)
    )
    if isinstance(truth, SemanticMap):
        return SemanticMap(truth.labels[rows[:, None], columns], truth.classes)
    if isinstance(truth, PanopticMap):
        return recounted(truth.ids[rows[:, None], columns], truth)
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
