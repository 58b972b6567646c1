"""What is in a data set, and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from kirie.data import dataset_class
from kirie.data.dataset import Dataset, Sample
from kirie.data.fault import Fault
from kirie.data.faults import check_whole, layout_faults
from kirie.data.folders import fitting_task
from kirie.data.inspection import ClassFacts, Inspection, Spread
from kirie.data.label_faults import check_size, missing_mask, unknown_mend, unknown_text
from kirie.data.labels import LabelFormat, read_labels
from kirie.data.layouts import FolderSettings, Layout, Pair
from kirie.data.lookalikes import Lookalikes
from kirie.data.objects import Objects
from kirie.data.splits import SPLITS, expect_split
from kirie.errors import KirieError, counted
from kirie.masks import Crop
from kirie.progress import tracked
from kirie.reading.images import image_facts, read_image
from kirie.results import Instances, PanopticMap, to_semantic

NEARLY_ALL = 0.99  # of a picture void: there is hardly anything to learn from it
TINY = 10  # pixels; objects below this are mostly slips of the annotator

LABEL_IT = "Right when there is nothing to find; else label it."


def inspect_dataset(
    path: str | Path,
    *,
    task: str | None = None,
    settings: FolderSettings | None = None,
    splits: Iterable[str] | None = None,
) -> Inspection:
    """What is in a data set, in folders or in a format made of them, and everything that is wrong with it.

    Every picture and every label file is decoded once, and what is wrong is collected, never raised.

    Args:
        path: the folder, or a COCO JSON file.
        task: semantic, instance or panoptic; None for what the label files serve.
        settings: how to read it; None looks for itself.
        splits: the splits to inspect; None for all pictures.

    Raises:
        KirieError: when `splits` holds a word that is no split.
    """
    root, read = Path(path), settings or FolderSettings()
    chosen = None if splits is None else {expect_split(split) for split in splits}
    tally = _Tally(read.channels)
    try:
        data_format = dataset_class(root, read, task)
        layout = data_format.find_layout(root, read, task)
    except KirieError as error:
        tally.add("fault", "not understood", str(error), mend="Arrange the files in one of the layouts.")
        return tally.inspection(root, Layout("", (), ""), None, "")
    form, found_task = None, ""
    try:
        form = data_format.find_format(root, layout, read, task)
        found_task = fitting_task(root, form, task)
    except KirieError as error:
        tally.add("fault", "not understood", str(error), mend="Do as the sentence says and inspect again.")
    tally.start(form, data_format.find_objects)
    pairs = tuple(pair for pair in layout.pairs if chosen is None or pair.split in chosen)
    for pair in tracked(pairs, "inspecting", len(pairs)):
        tally.read(pair)
    tally.faults += layout_faults(layout)
    tally.conclude()
    return tally.inspection(root, dataclasses.replace(layout, pairs=pairs), form, found_task)


def sheet_samples(dataset: Dataset, count: int = 12) -> list[Sample]:
    """Up to `count` samples spread evenly over a data set, for a contact sheet; broken ones are left out."""
    total = len(dataset)
    wanted = min(count, total)
    samples = []
    for index in range(wanted):
        try:
            samples.append(dataset[(2 * index + 1) * total // (2 * wanted)])
        except KirieError:
            continue  # inspecting names it
    return samples


class _Tally:
    """The counts and faults of the pictures read so far."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.form: LabelFormat | None = None
        self.find_objects: Callable[[Pair, LabelFormat, tuple[int, int] | None], Objects] | None = None
        self.faults: list[Fault] = []
        self.sizes: list[tuple[int, int]] = []
        self.kinds: Counter[str] = Counter()
        self.pixels = np.zeros(0, np.int64)
        self.images = np.zeros(0, np.int64)
        self.instances = np.zeros(0, np.int64)
        self.crowds = 0
        self.void = 0
        self.total = 0
        self.objects: list[int] = []
        self.areas: list[npt.NDArray[np.int64]] = []
        self.unknown: Counter[str] = Counter()
        self.lookalikes = Lookalikes()

    def add(self, severity: Literal["fault", "note"], kind: str, what: str, *files: str, mend: str = "") -> None:
        self.faults.append(Fault(severity, kind, what, files, mend))

    def start(
        self, form: LabelFormat | None, find_objects: Callable[[Pair, LabelFormat, tuple[int, int] | None], Objects]
    ) -> None:
        self.form, self.find_objects = form, find_objects
        count = len(form.classes) if form else 0
        self.pixels, self.images, self.instances = (np.zeros(count, np.int64) for _ in range(3))

    def read(self, pair: Pair) -> None:
        """Counts a picture and its label file."""
        size = self._read_image(pair)
        if not pair.mask:
            mend = "Add a label file with its stem, or take the picture out."
            self.add("fault", "picture without label file", str(missing_mask(pair.image)), pair.image, mend=mend)
            return
        if pair.mask.lower().endswith((".jpg", ".jpeg")):
            what = f"{pair.mask} is a JPEG, which changes the numbers in a mask."
            self.add("fault", "label file is JPEG", what, pair.mask, mend="Save label files as PNG.")
        if self.form is None:
            return
        try:
            found = self._read_labels(pair, size, self.form)
        except KirieError as error:
            mend = "Save it again, or take the picture and the label file out."
            self.add("fault", "label file cannot be used", str(error), pair.mask, mend=mend)
            return
        if size is not None and found is not None:
            try:
                check_size(pair.image, size, pair.mask, found)
            except KirieError as error:
                mend = "Save the label file at the size of the picture as it is shown."
                self.add("fault", "sizes differ", str(error), pair.image, pair.mask, mend=mend)

    def _read_image(self, pair: Pair) -> tuple[int, int] | None:
        path = pair.image
        try:
            facts = image_facts(path)
            image = read_image(path, self.channels)
        except KirieError as error:
            mend = "Copy or convert it again, or take it out."
            self.add("fault", "picture cannot be used", str(error), path, mend=mend)
            return None
        self.sizes.append((image.shape[0], image.shape[1]))
        self.lookalikes.add(path, pair.split, image)
        channels = "a palette" if facts.palette else f"{facts.channels} channel{'s' * (facts.channels > 1)}"
        self.kinds[f"{facts.bits} bits, {channels}, {facts.format}"] += 1
        return image.shape[0], image.shape[1]

    def _read_labels(self, pair: Pair, size: tuple[int, int] | None, form: LabelFormat) -> tuple[int, int] | None:
        """Counts a label file and tells its (H, W); None where it has none of its own."""
        if not (form.has_instances or form.segments) or self.find_objects is None:
            return self._read_map(pair.mask, form)
        truth, faults, _ = self.find_objects(pair, form, size)
        self.faults += faults
        if truth is None:
            return None
        if isinstance(truth, PanopticMap):
            self._count_segments(pair, truth)
        else:
            self._count_objects(pair, truth)
        return truth.size

    def _read_map(self, path: str, form: LabelFormat) -> tuple[int, int]:
        labels, unknown = read_labels(path, form)
        classes = form.classes
        counts = np.bincount(labels.ravel(), minlength=classes.void + 1)
        strange = sum(unknown.values())
        void = int(counts[classes.void]) - strange
        self.pixels += counts[: len(classes)]
        self.images += counts[: len(classes)] > 0
        self.void, self.total = self.void + void, self.total + labels.size
        if unknown:
            self.unknown.update(unknown)
            what, mend = f"{path} {unknown_text(unknown, form)}", unknown_mend(path, form)
            self.add("fault", "unknown ids", what, path, mend=mend)
        self._note_void(path, void / labels.size)
        self._notes_on_map(path, form, void / labels.size, counts[: len(classes)])
        return int(labels.shape[0]), int(labels.shape[1])

    def _notes_on_map(self, path: str, form: LabelFormat, void_share: float, counts: npt.NDArray[np.int64]) -> None:
        if void_share < NEARLY_ALL and form.classes.has_background and counts[0] and not counts[1:].any():
            what = f"{path} holds background alone."
            self.add("note", "empty mask", what, path, mend=LABEL_IT)
        facts = image_facts(path)
        if form.kind != "colour" and facts.channels > 2 and not facts.palette:
            what = f"{path} is saved as colours though all its pixels are grey; the grey values are taken as ids."
            self.add("note", "ids saved as colours", what, path, mend="Save it as a grey or palette PNG.")
        if form.kind == "colour" and (facts.palette or facts.channels < 3):
            what = f"{path} has {'a palette' if facts.palette else 'grey values'} where others have colours."
            self.add("note", "mixed label files", what, path, mend="Its colours are used; save all in one way.")

    def _note_void(self, path: str, share: float) -> None:
        if share >= NEARLY_ALL:
            what = f"{path} is void to {share:.1%}."
            self.add("note", "nearly all void", what, path, mend="Label it, or take the picture out.")

    def _count_segments(self, pair: Pair, truth: PanopticMap) -> None:
        labels, areas = (np.array([getattr(s, name) for s in truth.segments], np.int64) for name in ("label", "area"))
        crowd = np.array([s.crowd for s in truth.segments], bool)
        single = np.array([s.is_thing for s in truth.segments], bool) & ~crowd
        count, pixels = len(truth.classes), truth.ids.size
        of_classes = np.zeros(count, np.int64)
        np.add.at(of_classes, labels, areas)
        self.pixels += of_classes
        self.images += of_classes > 0
        self.instances += np.bincount(labels[single], minlength=count)
        self.objects.append(int(single.sum()))
        self.crowds += int(crowd.sum())
        void = pixels - int(areas.sum())
        self.void, self.total = self.void + void, self.total + pixels
        self._note_void(pair.mask, void / pixels)
        self._add_areas(pair, areas[single])

    def _add_areas(self, pair: Pair, areas: npt.NDArray[np.int64]) -> None:
        self.areas.append(areas)
        tiny = int((areas < TINY).sum())
        if tiny:
            what = f"{pair.image} has {counted(tiny, 'object')} of fewer than {TINY} pixels."
            self.add("note", "tiny objects", what, pair.image, mend="Look at them; stray pixels should be erased.")

    def _count_objects(self, pair: Pair, truth: Instances) -> None:
        singles = truth.singles()
        self.objects.append(len(singles))
        self.crowds += len(truth) - len(singles)
        self.instances += np.bincount(singles.labels, minlength=len(truth.classes))
        if not len(truth):
            what = f"{pair.image} has no objects."
            self.add("note", "picture without objects", what, pair.image, mend=LABEL_IT)
        painted = to_semantic(truth).labels
        shift = len(truth.classes.with_background()) - len(truth.classes)
        self.pixels += np.bincount(painted.ravel(), minlength=shift + len(truth.classes))[shift:]
        self.images += np.bincount(truth.labels, minlength=len(truth.classes)) > 0
        self.total += painted.size
        self._add_areas(pair, singles.masks.areas())
        twice = int(doubled_objects(truth).sum())
        if twice:
            what = f"{pair.image} has {counted(twice, 'object')} with the class and the box of another one."
            self.add("fault", "object stated twice", what, pair.image, mend="Take one of each out.")
        apart = sum(map(_in_parts, singles.masks.crops())) if self.form is not None and self.form.kind == "ids" else 0
        if apart:
            what = f"{pair.mask} has {counted(apart, 'object')} in several parts, each of which may be an object."
            mend = (
                "Give each object a number of its own; a mask of background and foreground belongs in a folder masks."
            )
            self.add("note", "object in several parts", what, pair.mask, mend=mend)

    def conclude(self) -> None:
        """Adds what only all files together show."""
        self.faults += self.lookalikes.faults()
        if self.form is not None and self.total:
            self.faults += check_whole(self.form, self.pixels, self.void, self.unknown)

    def inspection(self, root: Path, layout: Layout, form: LabelFormat | None, task: str) -> Inspection:
        counts = Counter(pair.split for pair in layout.pairs)
        by_area = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        areas = np.concatenate(self.areas) if self.areas else np.zeros(0, np.int64)
        return Inspection(
            path=str(root),
            task=task,
            format=form.kind if form else "",
            layout=layout.words,
            splits={split: counts[split] for split in (*SPLITS, "") if counts[split]},
            images=len(layout.pairs),
            sizes=(by_area[0], by_area[len(by_area) // 2], by_area[-1]) if by_area else (),
            distinct_sizes=len(set(by_area)),
            image_kinds=dict(self.kinds.most_common()),
            classes=self._class_facts(form, task),
            void_share=self.void / self.total if self.total else 0.0,
            per_image=_spread(self.objects) if form and (form.has_instances or form.segments) else None,
            areas=_spread(areas),
            faults=tuple(self.faults),
            published=form.published if form else "",
            crowds=self.crowds,
        )

    def _class_facts(self, form: LabelFormat | None, task: str) -> tuple[ClassFacts, ...]:
        if form is None:
            return ()
        labelled = max(self.total - self.void - sum(self.unknown.values()), 1)
        rows = zip(form.classes.names, self.pixels.tolist(), self.images.tolist(), self.instances.tolist(), strict=True)
        told = [form.has_instances or (form.segments and thing) for thing in form.classes.things]
        facts = tuple(
            ClassFacts(name, pixels, pixels / labelled, seen, objects if apart else None)
            for (name, pixels, seen, objects), apart in zip(rows, told, strict=True)
        )
        if form.has_instances and task == "semantic":
            rest = self.total - int(self.pixels.sum())
            background = ClassFacts("background", rest, rest / labelled, len(self.objects), None)
            return (background, *facts)
        return facts


def _in_parts(crop: Crop) -> bool:
    """Whether a mask has more than one connected part of a tenth of its pixels or more."""
    if not crop.bits.size:
        return False
    count, _, facts, _ = cv2.connectedComponentsWithStats(crop.bits.view(np.uint8), connectivity=8)
    areas = facts[1:count, cv2.CC_STAT_AREA]
    return int((10 * areas >= areas.sum()).sum()) > 1


def doubled_objects(truth: Instances) -> npt.NDArray[np.bool_]:
    """Which objects (N,) have the class, the box and the area of one before them."""
    doubled = np.ones(len(truth), bool)
    if len(truth):
        rows = np.column_stack([truth.labels, truth.boxes, truth.masks.areas()])
        doubled[np.unique(rows, axis=0, return_index=True)[1]] = False
    return doubled


def _spread(values: Any) -> Spread | None:
    if not len(values):
        return None
    return Spread(*(float(v) for v in np.percentile(values, [0, 5, 50, 95, 100])))
