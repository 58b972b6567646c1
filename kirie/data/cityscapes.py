"""Cityscapes: pictures in `leftImg8bit`, label files in `gtFine` or `gtCoarse`, a folder per split and city.

As the data set's own scripts describe it (Cordts and others, "The Cityscapes Dataset for Semantic Urban Scene
Understanding", CVPR 2016): `*_labelIds.png` hold ids 0 to 33, of which 19 are evaluated and the others are void here;
`*_labelTrainIds.png`, which the scripts make of the polygons, hold 0 to 18 and 255. `*_instanceIds.png` hold 1000 times
the class id and the number of the object for objects of the eight classes that have them, and the class id alone for
what is no object and for groups whose objects cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.class_lists import CITYSCAPES
from kirie.classes import Classes
from kirie.data.class_table import ClassTable, read_class_table
from kirie.data.fault import Fault
from kirie.data.folders import FolderDataset
from kirie.data.label_faults import unknown_mend, unknown_text
from kirie.data.labels import LabelFormat, file_ids, find_format, present_ids
from kirie.data.layouts import (
    FolderSettings,
    Layout,
    Pair,
    drop_unlabelled_test,
    empty_folders,
    list_pictures,
    stem_of,
    without_truth,
)
from kirie.data.objects import Objects
from kirie.data.panoptic_maps import segment_map
from kirie.data.splits import canonical
from kirie.errors import KirieError
from kirie.masks import Masks, count_ids
from kirie.results import Instances

IMAGES = "leftImg8bit"
TRUTHS = ("gtFine", "gtCoarse")
IDS, TRAIN_IDS, INSTANCE_IDS = "labelIds", "labelTrainIds", "instanceIds"
DUMMIES = {
    IDS: {0, 1, 2, 3},
    INSTANCE_IDS: {0, 1, 2, 3},
    TRAIN_IDS: {255},
}  # all that the published label files of the test split hold
# Colours in *_color.png of the ids that are not evaluated, where no evaluated class has them.
VOID_COLORS = (
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180), (150, 100, 100),
    (150, 120, 90), (0, 0, 90), (0, 0, 110),
)  # fmt: skip


class CityscapesDataset(FolderDataset):
    """`leftImg8bit/train/CITY/*_leftImg8bit.png` with `gtFine/train/CITY/*_gtFine_labelIds.png`, 19 classes.

    Without `gtFine` the coarse labels are taken, and `train_extra` belongs to `train`; `data.masks: gtCoarse` says so
    where both are there. `data.suffix: _gtFine_color` reads other label files. A test split whose label files are the
    published dummies is left out. Task "instance" reads `*_gtFine_instanceIds.png`: the objects of the 8 classes of
    things, and groups of them as crowds; task "panoptic" reads these and the stuff from there, with the files' numbers
    as ids of the segments.
    """

    @staticmethod
    def recognises(path: str | Path, task: str | None = None, settings: FolderSettings | None = None) -> bool:
        """Whether there is a folder `leftImg8bit`, or the published archive's folder around it."""
        return _place(Path(path), IMAGES) is not None

    @staticmethod
    def find_layout(path: Path, settings: FolderSettings, task: str | None) -> Layout:
        """The pictures of the splits with their label files.

        Raises:
            KirieError: when there is no folder of label files, or no split or picture.
        """
        images = _place(path, settings.images or IMAGES)
        names = TRUTHS if settings.masks is None else (settings.masks,)
        masks = next((place for place in (_place(path, name) for name in names) if place), None)
        if images is None or masks is None:
            missing = " or ".join(names) if masks is None else settings.images or IMAGES
            raise KirieError(
                f"{path} has no folder {missing}; expected Cityscapes as {IMAGES}/train/CITY/A_{IMAGES}.png and "
                f"gtFine/train/CITY/A_gtFine_{IDS}.png. Unpack the label files beside the pictures."
            )
        splits = {folder: _split(folder.name, masks.name) for folder in sorted(images.iterdir()) if folder.is_dir()}
        splits = {folder: split for folder, split in splits.items() if split}
        labels = {f"{folder.name}/{stem_of(f)}": f for folder in splits for f in list_pictures(masks / folder.name)}
        by_stem = {stem: str(masks / stem.partition("/")[0] / file) for stem, file in labels.items()}
        kinds = (INSTANCE_IDS,) if task in ("instance", "panoptic") else (IDS, TRAIN_IDS)
        ending = settings.suffix or _ending(by_stem, masks, kinds)
        pairs = []
        for folder, split in splits.items():
            for file in list_pictures(folder):
                stem = f"{folder.name}/{stem_of(file).removesuffix(f'_{IMAGES}')}"
                name = (folder / file).relative_to(path).as_posix()
                pairs.append(Pair(name, str(folder / file), by_stem.get(stem + ending, ""), split))
        if not pairs:
            raise KirieError(f"{images} holds no pictures; expected them in train/CITY, val/CITY and test/CITY.")
        used = {pair.mask for pair in pairs}
        strays = tuple(m for stem, m in sorted(by_stem.items()) if stem.endswith(ending) and m not in used)
        words, gaps = f"Cityscapes, label files *{ending}", empty_folders(splits, pairs)
        return _with_truth(Layout(words, tuple(sorted(pairs)), masks.name, strays, gaps=gaps), ending)

    @staticmethod
    def find_format(path: Path, layout: Layout, settings: FolderSettings, task: str | None) -> LabelFormat:
        """The 19 classes by their ids, or those of a table beside the data.

        Raises:
            KirieError: as `labels.find_format`, and for task "panoptic" when no class of a table is a thing.
        """
        table, kinds = read_class_table(path), {stem_of(pair.mask).rpartition("_")[2] for pair in layout.pairs}
        if not table.names:
            classes = CITYSCAPES
            if TRAIN_IDS in kinds:
                classes = Classes(CITYSCAPES.names, CITYSCAPES.colors, CITYSCAPES.things)
            table = ClassTable.of(classes, "Cityscapes", VOID_COLORS)
        if INSTANCE_IDS not in kinds:
            return find_format(path, layout, settings, task, table)
        classes = find_format(path, layout, replace(settings, kind="index"), "semantic", table).classes
        published = table.source if table.published else ""
        if task != "panoptic":
            return LabelFormat("ids", _things(classes), published=published)
        if not any(classes.things):
            raise KirieError(
                f"{table.source} does not say which classes are things, whose objects *_{INSTANCE_IDS}.png tell apart; "
                'add them to it: "things": ["person", "car"].'
            )
        return LabelFormat("ids", classes, published=published, segments=True)

    @staticmethod
    def find_objects(pair: Pair, form: LabelFormat, size: tuple[int, int] | None) -> Objects:
        """The objects and groups in a file of instance ids; without classes of things in it, none.

        Where `form.segments` says so, the stuff too; ids that are neither a class nor void refuse the picture then.

        Raises:
            KirieError: when the file cannot be read.
        """
        ids = file_ids(pair.mask)
        if form.segments:
            return _segments(pair.mask, ids, form)
        label_of = {file_id: label for label, file_id in enumerate(form.classes.ids)}
        found = [(i, label_of.get(_class_number(i))) for i in present_ids(ids)]
        kept = [(i, label) for i, label in found if label is not None]
        masks, crowd = Masks.from_ids(ids, [i for i, _ in kept]), np.array([i < 1000 for i, _ in kept], bool)
        return Objects(Instances.from_masks(masks, [label for _, label in kept], form.classes, crowd=crowd))


def _class_number(number: int) -> int:
    """The number of the class that an instance id has."""
    return number // 1000 if number >= 1000 else number


def _segments(mask: str, ids: npt.NDArray[Any], form: LabelFormat) -> Objects:
    """The segments in a map of instance ids: groups of things are crowds, void and unknown numbers are void."""
    classes = form.classes
    label_of = {file_id: label for label, file_id in enumerate(classes.ids)}
    found, counts = count_ids(ids)
    facts, unknown = {}, {}
    for number, count in zip(found.tolist(), counts.tolist(), strict=True):
        label = label_of.get(_class_number(number))
        if label is not None and number:
            facts[number] = (label, number < 1000 and classes.things[label])
        elif _class_number(number) not in classes.void_ids:
            unknown[str(number)] = count
    truth = segment_map(ids, facts, classes)
    if not unknown:
        return Objects(truth)
    what, mend = f"{mask} {unknown_text(unknown, form)}", unknown_mend(mask, form)
    return Objects(truth, (Fault("fault", "unknown ids", what, (mask,), mend),), f"{what} {mend}")


def _things(classes: Classes) -> Classes:
    """The classes that are things; all of them where none is marked so."""
    kept = [i for i, thing in enumerate(classes.things) if thing or not any(classes.things)]
    names, colors = tuple(classes.names[i] for i in kept), tuple(classes.colors[i] for i in kept)
    return Classes(names, colors, (True,) * len(kept), tuple(classes.ids[i] for i in kept), ())


def _place(path: Path, name: str) -> Path | None:
    """A folder by its name, or in the folder around it that a published archive unpacks to."""
    places = (path / name, *sorted(path.glob(f"{name}_*/{name}")))
    return next((place for place in places if place.is_dir()), None)


def _split(name: str, truth: str) -> str:
    return "train" if name == "train_extra" and truth == TRUTHS[1] else canonical(name) or ""


def _ending(stems: dict[str, str], masks: Path, kinds: Sequence[str]) -> str:
    """What stands behind the name of a picture in the name of its label file, of the first kind that there is.

    Raises:
        KirieError: when there is no label file of these kinds.
    """
    for kind in kinds:
        if any(stem.endswith(f"_{masks.name}_{kind}") for stem in stems):
            return f"_{masks.name}_{kind}"
    raise KirieError(
        f"{masks} holds no label files {' or '.join(f'*_{masks.name}_{kind}.png' for kind in kinds)} in the splits "
        "that have pictures; set data.suffix to what stands behind the names of the pictures in theirs."
    )


def _with_truth(layout: Layout, ending: str) -> Layout:
    """The layout without a test split that has no label files or the dummies alone."""
    layout = drop_unlabelled_test(layout)
    test = [pair.mask for pair in layout.pairs if pair.split == "test" and pair.mask]
    dummy = DUMMIES.get(ending.rpartition("_")[2])
    if not test or dummy is None:
        return layout
    try:
        if any(not set(present_ids(file_ids(file))) <= dummy for file in test[:: max(1, len(test) // 3)]):
            return layout
    except KirieError:  # a broken file: reading or inspecting it says so
        return layout
    return without_truth(
        layout, "test", "The label files of the test pictures are dummies: its truth is not published."
    )
