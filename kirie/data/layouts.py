"""Which picture belongs to which label file: the folder layouts that are recognised without being told."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from kirie.data.objects import Fault
from kirie.data.splits import (
    SPLITS,
    canonical,
    group_of,
    group_pattern,
    list_files,
    listed_split,
    read_list_files,
    seeded_split,
    stem,
)
from kirie.errors import KirieError, counted
from kirie.reading.headers import IMAGE_SUFFIXES

IMAGE_FOLDERS = ("images", "imgs", "JPEGImages")
MASK_FOLDERS = ("masks", "labels", "ids", "instances", "annotations", "gt", "SegmentationClass")
ID_FOLDERS = ("ids", "instances")
# Endings that publishers put behind the stem of a picture to name its mask; tried when no stem is found as it is.
MASK_ENDINGS = ("_mask", "-mask", "_masks", "_label", "_labels", "_seg", "_gt", "_ids", "_instances", "_L")

Kind = Literal["auto", "index", "binary", "colour", "ids", "instance_folders"]
KINDS: tuple[str, ...] = get_args(Kind)

LAYOUTS = """\
  DATA/images/train/a.jpg  DATA/masks/train/a.png     (also val, test)
  DATA/train/images/a.jpg  DATA/train/masks/a.png     (also val, test)
  DATA/images/a.jpg        DATA/masks/a.png           (train.txt, val.txt with names, or split by a seed)
  DATA/a/images/a.png      DATA/a/masks/1.png, 2.png  (a folder per picture, a file per object)
  DATA/a.jpg               DATA/a_mask.png            (one folder)"""


@dataclass(frozen=True)
class FolderSettings:
    """How to read folders of pictures and label files; every value has a default that looks for itself.

    Attributes:
        images: name of the folder of pictures.
        masks: name of the folder of label files.
        suffix: what stands behind a picture's stem in the name of its label file, as "_mask"; common ones are tried.
        kind: what label files hold: "index" (class ids), "binary", "colour", "ids" (object ids), "instance_folders"
            (a folder per picture, a file per object), or "auto" to look.
        classes: names, in place of those in classes.json or classes.txt.
        ignore: ids in label files that mean void, in place of those in classes.json (255 without one). In files of
            object ids they are no objects, and their pixels are background as those of 0 are.
        val_fraction: share of the pictures for `val` where neither folders nor list files say it.
        test_fraction: share for `test`, likewise.
        seed: of that split.
        group: regular expression whose first group, found in the file name, keeps pictures together in one split.
        short_side: pictures are resized on reading so that their shorter side has this many pixels.
        channels: C of the pictures: 1 grey, 3 RGB, 4 RGB and alpha, or as many as a TIFF has.
        format: a row of `DATASETS`, where the data are not to be opened by the first that recognises them.
    """

    images: str | None = None
    masks: str | None = None
    suffix: str = ""
    kind: Kind = "auto"
    classes: tuple[str, ...] | None = None
    ignore: tuple[int, ...] | None = None
    val_fraction: float = 0.2
    test_fraction: float = 0.0
    seed: int = 0
    group: str | None = None
    short_side: int | None = None
    channels: int = 3
    format: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise KirieError(f"data.kind is {self.kind!r}; expected one of {', '.join(KINDS)}.")
        shares = (self.val_fraction, self.test_fraction)
        if min(shares) < 0 or sum(shares) > 1:
            raise KirieError(f"val_fraction and test_fraction are {shares}; expected shares that add up to at most 1.")
        if self.short_side is not None and self.short_side < 1:
            raise KirieError(f"data.short_side is {self.short_side}; expected at least 1 pixel, or none.")
        wrong = [i for i in self.ignore or () if not 0 <= i <= 65535]
        if wrong:
            raise KirieError(f"data.ignore holds {wrong[:6]}; label files hold numbers in 0..65535.")
        if not 1 <= self.channels <= 4096:
            raise KirieError(f"data.channels is {self.channels}; expected 1 to 4096.")


class Pair(NamedTuple):
    """A picture with its truth.

    Attributes:
        name: how to name it to a person.
        image: its path.
        mask: the path of its label file, or of its folder of label files; '' when there is none.
        split: train, val or test; '' for none.
        row: its number in a label file that serves many pictures.
        classes: the file that says the class of each pixel, where `mask` tells objects apart and not their classes.
    """

    name: str
    image: str
    mask: str
    split: str
    row: int = 0
    classes: str = ""


class Gap(NamedTuple):
    """A split that has no pictures to offer: why, how to mend it, and whether that is a fault or as it should be."""

    split: str
    why: str
    mend: str
    severity: Literal["fault", "note"] = "fault"


@dataclass(frozen=True)
class Layout:
    """What was found in a folder.

    Attributes:
        words: the layout, for a person.
        pairs: pictures in the order of their names.
        mask_folder: the name of the folder of label files; '' when they lie beside the pictures.
        strays: label files without a picture.
        unfound: names in list files without a picture.
        seeded: whether the splits were drawn by the seed, since neither folders nor list files give them.
        gaps: splits that folders, lists or the settings ask for and that have no pictures.
        faults: what else is wrong with the files, beyond single pictures.
        left_out: what of the files is left out so that it is not learned from, a sentence each.
    """

    words: str
    pairs: Sequence[Pair]
    mask_folder: str
    strays: tuple[str, ...] = ()
    unfound: tuple[str, ...] = ()
    seeded: bool = False
    gaps: tuple[Gap, ...] = ()
    faults: tuple[Fault, ...] = ()
    left_out: tuple[str, ...] = ()


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
        task: "instance" prefers a folder `ids` or `instances` to `masks`.

    Raises:
        KirieError: when the folder is missing, a file, empty or in no layout that is known.
    """
    _expect_folder(root)
    layout = _find(root, settings, (*ID_FOLDERS, *MASK_FOLDERS) if task == "instance" else MASK_FOLDERS)
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


def empty_folders(folders: Mapping[Path, str], pairs: Iterable[Pair]) -> tuple[Gap, ...]:
    """A gap for each folder of a split that has no pictures."""
    filled = {"", *(pair.split for pair in pairs)}
    mend = "Add some, or delete the folder."
    return tuple(
        Gap(split, f"{place} holds no pictures.", mend) for place, split in folders.items() if split not in filled
    )


def empty_lists(files: Mapping[Path, str], pairs: Iterable[Pair]) -> tuple[Gap, ...]:
    """A gap for each list file whose split has none of the pictures."""
    filled = {pair.split for pair in pairs}
    why = "{} names no picture that is there."
    mend = "Write the names of pictures into it, one a line, or delete it."
    return tuple(Gap(split, why.format(path), mend) for path, split in files.items() if split not in filled)


def with_splits(root: Path, layout: Layout, settings: FolderSettings) -> Layout:
    """The layout with a split for each picture: what folders say, else list files, else the seed.

    Raises:
        KirieError: when there are no pictures, or a list file cannot be used.
    """
    if not layout.pairs:
        raise KirieError(f"{root} holds no pictures; expected a data set in one of these layouts:\n{LAYOUTS}")
    layout = replace(layout, pairs=tuple(sorted(layout.pairs)))
    if all(pair.split for pair in layout.pairs):
        return layout
    files = list_files(root)
    lists = read_list_files(files, IMAGE_SUFFIXES)
    if lists:
        return _listed(layout, files, lists)
    own = canonical(root.resolve().name)
    if own:
        done = tuple(pair._replace(split=own) for pair in layout.pairs)
        return replace(layout, words=f"{layout.words}; all of it {own}", pairs=done)
    pattern = group_pattern(settings.group)
    keys = [group_of(stem(pair.name.rsplit("/", 1)[-1], IMAGE_SUFFIXES), pattern) for pair in layout.pairs]
    drawn = [seeded_split(key, settings.seed, settings.val_fraction, settings.test_fraction) for key in keys]
    done = tuple(pair._replace(split=split) for pair, split in zip(layout.pairs, drawn, strict=True))
    words = f"{layout.words}; split by seed {settings.seed}"
    return replace(layout, words=words, pairs=done, seeded=True, gaps=_undrawn(set(keys), settings))


def _listed(layout: Layout, files: dict[Path, str], lists: dict[str, str]) -> Layout:
    keys = [stem(pair.name, IMAGE_SUFFIXES) for pair in layout.pairs]
    done = tuple(p._replace(split=listed_split(key, lists)) for p, key in zip(layout.pairs, keys, strict=True))
    known = {*keys, *(key.rsplit("/", 1)[-1] for key in keys)}
    unfound = tuple(entry for entry in lists if entry not in known and entry.rsplit("/", 1)[-1] not in known)
    gaps = empty_lists(files, done)
    return replace(layout, words=f"{layout.words}; splits from list files", pairs=done, unfound=unfound, gaps=gaps)


def _undrawn(keys: set[str], settings: FolderSettings) -> tuple[Gap, ...]:
    """A gap for each split that has a share of the pictures by the settings and got none from the seed."""
    shares = (1 - settings.val_fraction - settings.test_fraction, settings.val_fraction, settings.test_fraction)
    wanted = [split for split, share in zip(SPLITS, shares, strict=True) if share > 1e-9]

    def lost(seed: int) -> list[str]:
        drawn = {seeded_split(key, seed, settings.val_fraction, settings.test_fraction) for key in keys}
        return [split for split in wanted if split not in drawn]

    empty = lost(settings.seed)
    if not empty:
        return ()
    enough = len(keys) >= len(wanted)
    better = next((seed for seed in range(100_000 // len(keys)) if not lost(seed)), None) if enough else None
    mend = "Add pictures" if better is None else f"Set data.seed: {better}, which leaves no split empty"
    mend += ", or put the pictures of each split into a folder of its own."
    what = counted(len(keys), "group" if settings.group else "picture")
    return tuple(Gap(split, f"Of {what} seed {settings.seed} draws none for {split}.", mend) for split in empty)


def without_truth(layout: Layout, split: str, why: str) -> Layout:
    """The layout without the pictures of a split, whose truth its publisher keeps; a note says so."""
    mend = "Nothing to mend; `kirie predict` takes its pictures as they are."
    kept = tuple(pair for pair in layout.pairs if pair.split != split)
    return replace(layout, pairs=kept, gaps=(*layout.gaps, Gap(split, why, mend, "note")))


def moved_below(root: Path, home: Path, layout: Layout) -> Layout:
    """The layout of a folder `home` in `root` with the names of its pictures as they are below `root`."""
    below = home.relative_to(root).as_posix()
    if below == ".":
        return layout
    return replace(layout, pairs=tuple(pair._replace(name=f"{below}/{pair.name}") for pair in layout.pairs))


def drop_unlabelled_test(layout: Layout) -> Layout:
    """The layout without its test pictures where none of them has a label file."""
    test = [pair for pair in layout.pairs if pair.split == "test"]
    if not test or any(pair.mask for pair in test):
        return layout
    return without_truth(layout, "test", f"None of {counted(len(test), 'test picture')} has a label file.")


def _ending(pictures: set[str], masks: set[str], together: bool) -> str:
    """What stands behind the stem of a picture in the name of its mask: '' when stems agree, else the likeliest."""
    if not together and pictures & masks:
        return ""
    hits = {ending: sum(key + ending in masks for key in pictures) for ending in MASK_ENDINGS}
    best = max(hits, key=lambda ending: hits[ending])
    return best if hits[best] else ""


def files_by_stem(files: Iterable[str]) -> dict[str, str]:
    """Paths of files by path without ending; of several with one stem the one that is not JPEG."""
    by_key: dict[str, str] = {}
    for file in sorted(files, key=lambda f: f.lower().endswith((".jpg", ".jpeg"))):
        by_key.setdefault(stem_of(file), file)
    return by_key


def _inside(path: str, folders: set[str]) -> bool:
    return os.path.dirname(path) in folders


def stem_of(file: str) -> str:
    """A path without the ending of a picture file."""
    return stem(file, IMAGE_SUFFIXES)


def list_pictures(folder: str | Path, *, deep: bool = True) -> list[str]:
    """The picture files below a folder as sorted paths relative to it, with /; hidden ones are skipped."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if deep else []
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        start = "" if below == "." else f"{below}/"
        found += [start + f for f in files if not f.startswith(".") and f.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(found)


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
