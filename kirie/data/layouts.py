"""What the pictures and label files of a data set are to all formats: settings, pairs, splits and their gaps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from kirie.data.fault import Fault
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
ID_FOLDERS = ("ids", "instances")

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
            object ids they are no objects, and their pixels are background as those of 0 are. In COCO and YOLO: the
            numbers of classes that are left out, in COCO panoptic of those that are void.
        val_fraction: share of the pictures for `val` where neither folders nor list files say it.
        test_fraction: share for `test`, likewise.
        seed: of that split.
        fold: (i, k), for k-fold cross-validation: of all pictures of `train` and `val`, drawn by the seed into k parts
            of one size, the i-th is `val`, from 1 to k, and the others are `train`.
        group: regular expression whose first group, found in the file name, keeps pictures together in one split.
        short_side: pictures are resized on reading so that their shorter side has this many pixels.
        gap: of objects that touch, the pixels within so many of another one are background where a model learns classes
            of pixels from them, so that its map keeps them apart; what is measured keeps them as they are.
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
    fold: tuple[int, int] | None = None
    group: str | None = None
    short_side: int | None = None
    gap: int = 0
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
        if (self.fold is not None and not 1 <= self.fold[0] <= self.fold[1]) or self.fold == (1, 1):
            raise KirieError(
                f"data.fold is {list(self.fold or ())}; expected [i, k], the i-th of k parts, from [1, 2] to [k, k]."
            )
        if not 0 <= self.gap <= 64:
            raise KirieError(f"data.gap is {self.gap}; expected 0 to 64 pixels.")
        if not 1 <= self.channels <= 4096:
            raise KirieError(f"data.channels is {self.channels}; expected 1 to 4096.")

    def refuse(self, *entries: str, format_name: str) -> None:
        """Nothing, when entries that a format has no use for are as they are when nobody sets them.

        Raises:
            KirieError: when one is set, which would else be passed over.
        """
        for entry in entries:
            value, usual = getattr(self, entry), getattr(FolderSettings, entry)
            if value != usual:
                back = "null" if usual is None else usual or "''"
                raise KirieError(
                    f"data.{entry} is {value!r}, for which {format_name} has no use. Leave it out, or say "
                    f'--set "{entry}={back}" where the recipe of a model brings it; data.format names another format.'
                )


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


def folded(layout: Layout, settings: FolderSettings) -> Layout:
    """The same pictures, those of train and val divided anew by `settings.fold`; without a fold as they are.

    Raises:
        KirieError: when there are fewer pictures (or groups) than parts.
    """
    if settings.fold is None:
        return layout
    number, of = settings.fold
    pattern = group_pattern(settings.group)
    keys = [group_of(stem(pair.name.rsplit("/", 1)[-1], IMAGE_SUFFIXES), pattern) for pair in layout.pairs]
    known = sorted({key for key, pair in zip(keys, layout.pairs, strict=True) if pair.split in ("train", "val")})
    if len(known) < of:
        what = counted(len(known), "group" if settings.group else "picture")
        raise KirieError(f"data.fold divides into {of} parts, but train and val have {what}: take fewer parts.")
    drawn = np.random.default_rng(settings.seed).permutation(len(known))
    part = {key: int(place) % of for key, place in zip(known, drawn, strict=True)}
    pairs = tuple(
        pair._replace(split="val" if part[key] == number - 1 else "train") if pair.split in ("train", "val") else pair
        for key, pair in zip(keys, layout.pairs, strict=True)
    )
    gaps = tuple(gap for gap in layout.gaps if gap.split == "test")
    return replace(layout, words=f"{layout.words}; fold {number} of {of}", pairs=pairs, gaps=gaps)


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


def files_by_stem(files: Iterable[str]) -> dict[str, str]:
    """Paths of files by path without ending; of several with one stem the one that is not JPEG."""
    by_key: dict[str, str] = {}
    for file in sorted(files, key=lambda f: f.lower().endswith((".jpg", ".jpeg"))):
        by_key.setdefault(stem_of(file), file)
    return by_key


def stem_of(file: str) -> str:
    """A path without the ending of a picture file."""
    return stem(file, IMAGE_SUFFIXES)


def list_pictures(folder: str | Path, *, deep: bool = True, most_others: int | None = None) -> list[str]:
    """The picture files below a folder as sorted paths relative to it, with /; hidden ones are skipped.

    Args:
        folder: where to look.
        deep: whether to look into its folders too.
        most_others: by how much folders and files that are no pictures may outnumber the pictures.

    Raises:
        KirieError: as soon as they do by more, as where somebody names a whole disk.
    """
    found: list[str] = []
    seen = 0
    for place, folders, files in os.walk(folder):
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        start = "" if below == "." else f"{below}/"
        found += [start + f for f in files if not f.startswith(".") and f.lower().endswith(IMAGE_SUFFIXES)]
        seen += len(folders) + len(files)
        if most_others is not None and seen - 2 * len(found) > most_others:
            raise KirieError(
                f"{folder} holds more than {most_others:,} files and folders that are no pictures; expected the folder "
                "of the pictures alone."
            )
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if deep else []
    return sorted(found)
