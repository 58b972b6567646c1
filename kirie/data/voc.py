"""Pascal VOC and sets laid out like it: pictures, palette masks, and list files that say which of them belong where.

As the PASCAL VOC 2012 development kit describes it (Everingham and others, "The PASCAL Visual Object Classes Challenge:
A Retrospective", IJCV 2015), files in `SegmentationObject` number the objects from 1 and mark their borders 255. The
enlarged training list `trainaug` with `SegmentationClassAug` comes from the Semantic Boundaries Dataset (Hariharan and
others, ICCV 2011). CVAT and Datumaro write the same folders with a `labelmap.txt`, and a colour for each object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kirie.class_lists import VOC, VOC_VOID_COLOR
from kirie.data.class_table import ClassTable, read_class_table
from kirie.data.folders import FolderDataset
from kirie.data.labels import LabelFormat, find_format
from kirie.data.layouts import (
    FolderSettings,
    Layout,
    Pair,
    drop_unlabelled_test,
    empty_lists,
    files_by_stem,
    list_pictures,
    moved_below,
    with_splits,
)
from kirie.data.splits import list_files, read_list_files
from kirie.errors import KirieError
from kirie.reading.headers import IMAGE_SUFFIXES

IMAGES = "JPEGImages"
MASKS = ("SegmentationClass", "SegmentationClassAug")
OBJECTS = "SegmentationObject"
LISTS = "ImageSets/Segmentation"
ENLARGED = ("trainaug", "train_aug")  # names of the list of the Semantic Boundaries Dataset


class VocDataset(FolderDataset):
    """Pictures in `JPEGImages`, masks in `SegmentationClass`, splits in `ImageSets/Segmentation/*.txt`.

    The path is that folder itself, or one with `VOC2012` or `VOCdevkit/VOC2012` in it. Classes are those of the table
    beside the data (`classes.json`, `labelmap.txt`...), else the 21 of VOC. Where `trainaug.txt` and
    `SegmentationClassAug` are there, they are the training split; a mask in `SegmentationClass` goes before one there.
    Lists without the name of a split (`default.txt`, or `trainval.txt` alone) make one pool that the seed splits.

    With task "instance" the objects are those of `SegmentationObject`, each of the class that most of its pixels have
    in `SegmentationClass`; with task "panoptic" they are the things of a map whose stuff is the background.
    """

    @staticmethod
    def recognises(path: str | Path, task: str | None = None, settings: FolderSettings | None = None) -> bool:
        """Whether there are `JPEGImages`, `SegmentationClass` and `ImageSets` in a path or below it."""
        return bool(_homes(Path(path)))

    @staticmethod
    def find_layout(path: Path, settings: FolderSettings, task: str | None) -> Layout:
        """The pictures that the lists name, with their masks.

        Raises:
            KirieError: when lists are missing, cannot be used or name no picture that is there.
        """
        home = _home(path)
        objects = task in ("instance", "panoptic") and (home / (settings.masks or OBJECTS)).is_dir()
        files = _lists(home, settings, enlarged=not objects)
        layout = _paired(home, read_list_files(files, IMAGE_SUFFIXES), settings, objects=objects)
        names = ", ".join(file.name for file in files)
        if not layout.pairs:
            raise KirieError(
                f"{home} holds no picture that its lists name ({names} in {LISTS}, {len(layout.unfound)} names); "
                f"expected a name a line, without ending, of the pictures in {settings.images or IMAGES}."
            )
        layout = replace(layout, words=f"Pascal VOC with the lists {names}")
        if all(files.values()):
            layout = drop_unlabelled_test(replace(layout, gaps=empty_lists(files, layout.pairs)))
        else:
            layout = with_splits(home, layout, settings)
        return moved_below(path, home, layout)

    @staticmethod
    def find_format(path: Path, layout: Layout, settings: FolderSettings, task: str | None) -> LabelFormat:
        """Class numbers or colours, of the table beside the data or of VOC.

        Raises:
            KirieError: as `labels.find_format`.
        """
        table = read_class_table(_home(path))
        if not table.names:
            table = ClassTable.of(VOC, "Pascal VOC", (VOC_VOID_COLOR,))
        if not any(pair.classes for pair in layout.pairs):
            return find_format(path, layout, settings, task, table)
        form = find_format(path, layout, replace(settings, kind="ids"), task, table)
        return replace(form, dropped_ids=(*form.dropped_ids, 255), void_colors=(VOC_VOID_COLOR,))


def _homes(path: Path) -> list[Path]:
    """The folders with `JPEGImages`, masks and `ImageSets`: the path itself, or those of the years below it."""
    places = [path, *sorted(path.glob("VOC2*")), *sorted(path.glob("VOCdevkit/VOC2*"))]
    found = [
        place
        for place in places
        if (place / IMAGES).is_dir() and (place / "ImageSets").is_dir() and any((place / m).is_dir() for m in MASKS)
    ]
    return found[:1] if path in found else found


def _home(path: Path) -> Path:
    """The one folder of `_homes`; the path itself when there is none, as where the user names the format.

    Raises:
        KirieError: when there are several.
    """
    found = _homes(path)
    if len(found) > 1:
        raise KirieError(f"{path} holds several data sets: {', '.join(map(str, found))}; name one of them.")
    return found[0] if found else path


def _lists(home: Path, settings: FolderSettings, *, enlarged: bool) -> dict[Path, str]:
    """The list files to use with their splits, the split '' for all of them where none has the name of a split.

    Raises:
        KirieError: when there are none.
    """
    place = home / LISTS
    named = list_files(place)
    if enlarged and settings.masks in (None, MASKS[1]) and (home / MASKS[1]).is_dir():
        larger = [place / f"{name}.txt" for name in ENLARGED if (place / f"{name}.txt").is_file()]
        if larger:
            named = {larger[0]: "train", **{file: split for file, split in named.items() if split != "train"}}
    other = {file: "" for file in sorted(place.glob("*.txt")) if file.stem not in ENLARGED}
    if not other:
        raise KirieError(
            f"{home} is laid out like Pascal VOC but has no list files {LISTS}/*.txt; expected train.txt and val.txt "
            "with the name of a picture a line. Write them, or say data.format: folders to split by a seed."
        )
    return named or other


def _paired(home: Path, split_of: dict[str, str], settings: FolderSettings, *, objects: bool) -> Layout:
    """The listed pictures with their masks, from the first folder that has one; unlisted ones are left alone."""
    images = home / (settings.images or IMAGES)
    pictures = files_by_stem(list_pictures(images))
    names = (OBJECTS,) if objects else MASKS
    folders = [home / name for name in (names if settings.masks is None else (settings.masks,))]
    masks = _label_files(folders)
    classes = _label_files([home / name for name in MASKS]) if objects else {}
    pairs, unfound = [], []
    for entry, split in split_of.items():
        name = next((name for name in _spellings(entry) if name in pictures), None)
        if name is None:
            unfound.append(entry)
            continue
        image = images / pictures[name]
        mask, below = masks.get(name + settings.suffix, ""), image.relative_to(home).as_posix()
        pairs.append(Pair(below, str(image), mask, split, classes=classes.get(name, "")))
    strays = tuple(file for stem, file in masks.items() if stem.removesuffix(settings.suffix) not in pictures)
    return Layout("", tuple(sorted(set(pairs))), folders[0].name, strays, tuple(unfound))


def _label_files(folders: Sequence[Path]) -> dict[str, str]:
    """The label files by stem, each from the first of the folders that has one."""
    found: dict[str, str] = {}
    for folder in reversed(folders):
        found.update({stem: str(folder / file) for stem, file in files_by_stem(list_pictures(folder)).items()})
    return found


def _spellings(entry: str) -> Sequence[str]:
    """How a list may name a picture: by its path below the folder of pictures or below the data set, or by its name."""
    return entry, entry.lstrip("/").partition("/")[2], entry.rpartition("/")[2]
