"""Which picture of a folder belongs to which label file, found by the names of folders and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kirie.data.layouts import (
    ID_FOLDERS,
    IMAGE_FOLDERS,
    LAYOUTS,
    FolderSettings,
    Layout,
    Pair,
    empty_folders,
    files_by_stem,
    list_pictures,
    stem_of,
    with_splits,
)
from kirie.data.splits import canonical
from kirie.errors import KirieError

MASK_FOLDERS = ("masks", "labels", "ids", "instances", "annotations", "gt", "SegmentationClass")
# Endings that publishers put behind the stem of a picture to name its mask; tried when no stem is found as it is.
MASK_ENDINGS = ("_mask", "-mask", "_masks", "_label", "_labels", "_seg", "_gt", "_ids", "_instances", "_L")


class _Source(NamedTuple):
    """A folder of pictures, its folder of label files, and the split that folder names give ('' for none)."""

    images: Path
    masks: Path | None
    split: str


def find_layout(root: Path, settings: FolderSettings, task: str | None) -> Layout:
    """The pictures and label files below a folder.

    Args:
        root: the data set's folder.
        settings: folder names, suffix, fractions, seed, group.
        task: "instance" and "panoptic" prefer a folder `ids` or `instances` to `masks`.

    Raises:
        KirieError: when the folder is missing, a file, empty or in no layout that is known.
    """
    _expect_folder(root)
    objects = task in ("instance", "panoptic")
    layout = _find(root, settings, (*ID_FOLDERS, *MASK_FOLDERS) if objects else MASK_FOLDERS)
    return _with_classes(root, layout, settings) if layout.mask_folder in ID_FOLDERS else layout


def _with_classes(root: Path, layout: Layout, settings: FolderSettings) -> Layout:
    """The layout of object ids with the class masks of the same pictures, where another folder has them."""
    order = (*(name for name in MASK_FOLDERS if name not in ID_FOLDERS), *ID_FOLDERS)
    other = _find(root, replace(settings, masks=None, suffix=""), order)
    if other.mask_folder in ("", *ID_FOLDERS):
        return layout
    found = {pair.image: pair.mask for pair in other.pairs}
    return replace(layout, pairs=tuple(pair._replace(classes=found.get(pair.image, "")) for pair in layout.pairs))


def _find(root: Path, settings: FolderSettings, order: Sequence[str]) -> Layout:
    splits = [folder for folder in _folders(root) if canonical(folder.name)]
    images = _image_folder(root, settings)
    if images is not None:
        inner = [folder for folder in _folders(images) if canonical(folder.name)]
        masks = _mask_folder(root, settings, order) or (images if settings.masks is None else None)
        if inner:
            return _join(root, "folders of pictures and of masks, each with a folder per split", inner, masks, settings)
        return _from_sources(root, "a folder of pictures and one of masks", [_Source(images, masks, "")], settings)
    if _picture_folders(root, settings, order):
        return _per_picture(root, "a folder per picture", [_Source(root, None, "")], settings, order)
    if splits and (settings.images is None or any(_image_folder(folder, settings) for folder in splits)):
        return _below_splits(root, splits, settings, order)
    if settings.images is not None:
        raise KirieError(f"{root} has no folder {settings.images!r}, which data.images names; {_present(root)}")
    if list_pictures(root, deep=False):
        return _from_sources(root, "pictures and masks in one folder", [_Source(root, root, "")], settings)
    raise KirieError(f"{root} holds no layout that is known; expected one of\n{LAYOUTS}")


def _expect_folder(root: Path) -> None:
    if not root.exists():
        raise KirieError(f"There is no folder {root}; expected a data set in one of these layouts:\n{LAYOUTS}")
    if not root.is_dir():
        raise KirieError(f"{root} is a file; expected the folder of a data set in one of these layouts:\n{LAYOUTS}")
    if not any(root.iterdir()):
        raise KirieError(f"{root} is empty; expected a data set in one of these layouts:\n{LAYOUTS}")


def _join(root: Path, words: str, inner: list[Path], masks: Path | None, settings: FolderSettings) -> Layout:
    sources = []
    for folder in inner:
        below = masks / folder.name if masks is not None else None  # when masks lie beside pictures: that folder
        place = below if below is not None and below.is_dir() else masks
        sources.append(_Source(folder, place, canonical(folder.name) or ""))
    return _from_sources(root, words, sources, settings)


def _below_splits(root: Path, splits: list[Path], settings: FolderSettings, order: Sequence[str]) -> Layout:
    named = [(folder, canonical(folder.name) or "") for folder in splits]
    if any(_image_folder(folder, settings) for folder, _ in named):
        sources = [
            _Source(
                images, _mask_folder(folder, settings, order) or (images if settings.masks is None else None), split
            )
            for folder, split in named
            if (images := _image_folder(folder, settings))
        ]
        return _from_sources(root, "a folder per split, each with pictures and masks", sources, settings)
    if any(_picture_folders(folder, settings, order) for folder, _ in named):
        sources = [_Source(folder, None, split) for folder, split in named]
        return _per_picture(root, "a folder per split with a folder per picture", sources, settings, order)
    sources = [_Source(folder, folder, split) for folder, split in named]
    return _from_sources(root, "a folder per split with pictures and masks together", sources, settings)


def _from_sources(root: Path, words: str, sources: list[_Source], settings: FolderSettings) -> Layout:
    pairs: list[Pair] = []
    used: set[str] = set()
    every: dict[str, None] = {}
    for source in sources:
        together = source.masks == source.images
        files = list_pictures(source.images)
        masks = files if together else list_pictures(source.masks) if source.masks else []
        ending = settings.suffix or _ending({stem_of(f) for f in files}, {stem_of(f) for f in masks}, together)
        by_key = files_by_stem(masks)
        pictures = [f for f in files if not (together and ending and stem_of(f).endswith(ending))]
        for file in pictures:
            mask = by_key.get(stem_of(file) + ending, "") if ending or not together else ""
            if not mask and source.masks and not together and (source.masks / stem_of(file)).is_dir():
                mask = stem_of(file)  # a folder with a file per object
            path = str(source.masks / mask) if mask and source.masks else ""
            used.add(path)
            image = source.images / file
            pairs.append(Pair(image.relative_to(root).as_posix(), str(image), path, source.split))
        if source.masks and not together:
            every.update(dict.fromkeys(str(source.masks / m) for m in masks))
        elif together and ending:
            every.update(dict.fromkeys(str(source.images / m) for m in masks if stem_of(m).endswith(ending)))
    strays = tuple(path for path in every if path not in used and not _inside(path, used))
    first = next((s for s in sources if s.masks and s.masks != s.images), None)
    base = first.masks if first and first.masks else None
    folder = "" if base is None else base.parent.name if canonical(base.name) else base.name
    gaps = empty_folders({source.images: source.split for source in sources}, pairs)
    return with_splits(root, Layout(words, tuple(pairs), folder, strays, gaps=gaps), settings)


def _per_picture(
    root: Path, words: str, sources: list[_Source], settings: FolderSettings, order: Sequence[str]
) -> Layout:
    pairs, folder = [], ""
    for source in sources:
        for place in _folders(source.images):
            images = _image_folder(place, settings)
            files = list_pictures(images) if images else []
            if images is None or not files:
                continue
            masks = _mask_folder(place, settings, order)
            folder = folder or (masks.name if masks else "")
            name = place.relative_to(root).as_posix()
            pairs.append(Pair(name, str(images / files[0]), str(masks) if masks else "", source.split))
    gaps = empty_folders({source.images: source.split for source in sources}, pairs)
    return with_splits(root, Layout(words, tuple(pairs), folder, gaps=gaps), settings)


def _ending(pictures: set[str], masks: set[str], together: bool) -> str:
    """What stands behind the stem of a picture in the name of its mask: '' when stems agree, else the likeliest."""
    if not together and pictures & masks:
        return ""
    hits = {ending: sum(key + ending in masks for key in pictures) for ending in MASK_ENDINGS}
    best = max(hits, key=lambda ending: hits[ending])
    return best if hits[best] else ""


def _inside(path: str, folders: set[str]) -> bool:
    return os.path.dirname(path) in folders


def _present(root: Path) -> str:
    names = [folder.name for folder in _folders(root)]
    return f"its folders are {', '.join(names[:12])}." if names else "it has no folders."


def _folders(place: Path) -> list[Path]:
    return sorted(f for f in place.iterdir() if f.is_dir() and not f.name.startswith("."))


def _image_folder(place: Path, settings: FolderSettings) -> Path | None:
    names = IMAGE_FOLDERS if settings.images is None else (settings.images,)
    return next((place / name for name in names if (place / name).is_dir()), None)


def _mask_folder(place: Path, settings: FolderSettings, order: Sequence[str]) -> Path | None:
    names = order if settings.masks is None else (settings.masks,)
    return next((place / name for name in names if (place / name).is_dir()), None)


def _picture_folders(place: Path, settings: FolderSettings, order: Sequence[str]) -> bool:
    """Whether there is a folder per picture: with folders of pictures and of masks, and no split's name."""
    return any(
        _image_folder(folder, settings) is not None and _mask_folder(folder, settings, order) is not None
        for folder in _folders(place)
        if not canonical(folder.name)
    )
