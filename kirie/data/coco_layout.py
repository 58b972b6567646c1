"""Where the JSON files and the pictures of a COCO data set lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kirie.data.coco_file import CocoFile, Outline, read_coco
from kirie.data.coco_pictures import CocoPictures
from kirie.data.fault import Fault
from kirie.data.layouts import (
    IMAGE_FOLDERS,
    LAYOUTS,
    FolderSettings,
    Gap,
    Layout,
    Pair,
    list_pictures,
    with_splits,
    without_truth,
)
from kirie.data.panoptic_file import is_panoptic
from kirie.data.splits import canonical
from kirie.errors import KirieError, counted

ANNOTATIONS = "annotations"
# Endings and beginnings of names that say what a file is, the likeliest first; any other name is looked into.
KNOWN_NAMES = ("instances*.json", "*_annotations.coco.json")
OTHER_NAMES = ("panoptic", "captions", "person_keypoints", "stuff", "image_info", "classes.", "demo.")
SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "test", "testing")
MOST_FILES = 64  # JSON files of any name: more are rather a file per picture, of another format
HEAD = 2**16  # bytes of a file that are looked into
_LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_WORDS = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class CocoLayout(Layout):
    """What was found, with the files that were read for it.

    Attributes:
        files: by path.
    """

    files: Mapping[str, CocoFile] = field(default_factory=dict)


def coco_files(path: Path, settings: FolderSettings) -> dict[Path, str]:
    """The COCO instances files of a folder, or the one that the path is, each with its split ('' for none).

    Raises:
        KirieError: when there are several of one split.
    """
    places = [path, path / ANNOTATIONS] if settings.masks is None else [path / settings.masks]
    patterns = (*KNOWN_NAMES, "*.json")
    return json_files(
        path, places, patterns, lambda file: _looks_like_coco(file) and not is_panoptic(file), OTHER_NAMES
    )


def json_files(
    path: Path,
    places: Sequence[Path],
    patterns: Sequence[str],
    fits: Callable[[Path], bool],
    others: Sequence[str] = (),
) -> dict[Path, str]:
    """The JSON files in some places below a path and in their folders of splits, or the one that the path is.

    Args:
        path: of the data set.
        places: where to look.
        patterns: of names; the first that any file has decides.
        fits: whether a file is one of those looked for.
        others: beginnings of the names of files that are not.

    Returns:
        The files with their splits, '' for none.

    Raises:
        KirieError: when there are several of one split.
    """
    if path.is_file():
        return {path: _split(path)}
    splits = [folder for place in places if place.is_dir() for folder in place.iterdir() if canonical(folder.name)]
    places = [*places, *sorted(folder for folder in splits if folder.is_dir())]
    for pattern in patterns:
        named = [file for place in places for file in sorted(place.glob(pattern)) if file.is_file()]
        found = [file for file in named if not file.name.startswith((*others, "."))]
        if pattern == "*.json" and len(found) > MOST_FILES:
            return {}
        fitting = [file for file in found if fits(file)]
        if fitting:
            # One named for a split that has no file is meant to be it, and reading it tells what is wrong with it.
            rest = set(map(_split, found)) - set(map(_split, fitting)) - {""} if pattern != "*.json" else set()
            return _by_split(path, [file for file in found if file in fitting or _split(file) in rest])
    return {}


def _looks_like_coco(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD)
    except OSError:
        return False
    return _LISTS.search(head) is not None


def _by_split(path: Path, found: list[Path]) -> dict[Path, str]:
    named = {file: _split(file) for file in found}
    # One without a split beside those of the splits is of all of them together.
    chosen = {file: split for file, split in named.items() if split} or named
    for split in set(chosen.values()):
        same = [str(file) for file, own in chosen.items() if own == split]
        if len(same) > 1:
            whose = f" for {split}" if split else ""
            raise KirieError(
                f"{path} holds {len(same)} COCO files{whose}: {', '.join(same[:4])}; give the path of the one to use, "
                "or name them by their splits (instances_train.json, instances_val.json)."
            )
    return chosen


def _split(file: Path) -> str:
    """The split that the words in a file's name, or else its folder's name, say."""
    words = {canonical(word) for word in _WORDS.findall(file.stem.lower())} - {None}
    return (words.pop() if len(words) == 1 else canonical(file.resolve().parent.name)) or ""


def find_coco(path: Path, settings: FolderSettings) -> CocoLayout:
    """The pictures that the JSON files of a data set list.

    Raises:
        KirieError: when there is no such file, one cannot be read, or none of its pictures is there.
    """
    if not path.exists():
        raise KirieError(f"There is no folder or file {path}; expected a COCO JSON file, or a folder with one.")
    splits = coco_files(path, settings)
    if not splits:
        raise KirieError(
            f"{path} holds no COCO JSON file; expected {ANNOTATIONS}/instances_train.json, "
            "train/_annotations.coco.json or one of any name, with pictures beside it. Other layouts that are known:\n"
            + LAYOUTS
        )
    files = {str(file): read_coco(file) for file in splits}
    found = find_listed(path, "COCO", splits, files, settings)
    return CocoLayout(
        found.words,
        found.pairs,
        "",
        unfound=found.unfound,
        seeded=found.seeded,
        gaps=found.gaps,
        faults=found.faults,
        left_out=tuple(words for file in files.values() for words in (*_without_outline(file), *found_strays(file))),
        files=files,
    )


def home_of(path: Path) -> Path:
    """The folder of a data set whose path may be a JSON file in it."""
    above = [folder.parent for folder in path.parents[:2] if folder.name == ANNOTATIONS]
    return path if path.is_dir() else (above or [path.parent])[0]


def find_listed(
    path: Path,
    title: str,
    splits: Mapping[Path, str],
    files: Mapping[str, CocoPictures],
    settings: FolderSettings,
    avoid: Sequence[Path] = (),
) -> Layout:
    """The pictures that JSON files list and that are there, each with the path of the file as its `mask`.

    Args:
        path: of the data set.
        title: what the files are, for a person.
        splits: the files with their splits.
        files: what they hold, by path.
        settings: folder names, fractions, seed, group.
        avoid: folders that hold label files and no pictures.

    Raises:
        KirieError: when none of the pictures is there.
    """
    root = home_of(path)
    parts = [_pictures(root, file, split, settings, files[str(file)], avoid) for file, split in splits.items()]
    names = ", ".join(file.relative_to(root).as_posix() for file in splits)
    pairs = tuple(pair for part in parts for pair in part.pairs)
    gaps = tuple(gap for part in parts for gap in part.gaps)
    if not pairs:
        why = " ".join(gap.why for gap in gaps) or f"{names} lists none."
        raise KirieError(f"{path} has no labelled pictures. {why}")
    done = with_splits(root, Layout(f"{title}, {names}", pairs, ""), settings)
    return Layout(
        done.words,
        done.pairs,
        "",
        unfound=(*(name for part in parts for name in part.unfound), *done.unfound),
        seeded=done.seeded,
        gaps=(*gaps, *done.gaps),
        faults=tuple(fault for file in files.values() for fault in _faults(file)) + _shared(pairs),
    )


def _pictures(
    root: Path, path: Path, split: str, settings: FolderSettings, file: CocoPictures, avoid: Sequence[Path]
) -> Layout:
    """The pictures that a file lists and that are there."""
    if not file.labelled:
        why = f"{path} lists pictures but has no annotations, so it holds no truth."
        return without_truth(Layout("", (), ""), split, why)
    search = Search(root, _folders(root, path, split, settings), avoid)
    pairs, unfound = [], []
    for row, name in enumerate(file.names):
        place = search.find(name)
        if place is None:
            unfound.append(name)
            continue
        pairs.append(Pair(place, str(root / place), str(path), split, row))
    if not unfound or pairs:
        return Layout("", tuple(pairs), "", unfound=tuple(unfound))
    why = f"None of {counted(len(unfound), 'picture')} that {path} lists is there, such as {unfound[0]}."
    mend = f"Put them into {root / 'images' / split}, or name their folder with data.images."
    return Layout("", (), "", gaps=(Gap(split, why, mend),))


def _folders(root: Path, path: Path, split: str, settings: FolderSettings) -> list[str]:
    """Where the pictures of a file may lie, below `root`, the likeliest first."""
    names = split_names(path, split)
    tops = [*IMAGE_FOLDERS, ""] if settings.images is None else [settings.images]
    here = path.parent.relative_to(root).as_posix()
    inner = [f"{top}/{name}" for top in tops for name in names] + [f"{name}/{top}" for name in names for top in tops]
    beside = [here, *(f"{here}/{top}" for top in tops)] if settings.images is None else []
    return distinct_places([*inner, *beside, *tops])


def split_names(path: Path, split: str) -> list[str]:
    """What the folders of a file's split may be called: as the file, or by a name of the split."""
    own = path.stem.lower().removeprefix("instances_").removeprefix("panoptic_")
    return [name for name in dict.fromkeys((own, split, *SPLIT_FOLDERS)) if name == own or canonical(name) == split]


def distinct_places(places: Sequence[str]) -> list[str]:
    """Paths below a folder, each once and written alike."""
    return list(dict.fromkeys(place.strip("/").removeprefix("./") for place in places))


class Search:
    """Finds files by the paths that a JSON file gives them; a folder is listed when those before it are not enough.

    Args:
        root: the data set's folder.
        folders: where to look, below it.
        avoid: folders that hold other files.
    """

    def __init__(self, root: Path, folders: Sequence[str], avoid: Sequence[Path] = ()) -> None:
        self.root, self.avoid = root, avoid
        self.folders = [folder for folder in folders if (root / folder).is_dir() and root / folder not in avoid]
        self.listed: dict[str, set[str]] = {}
        self.by_name: dict[str, list[str]] | None = None

    def find(self, name: str) -> str | None:
        """The path below `root` of the file that is called `name`; None when it is not there.

        The folders come first, as in `inside`; then the only picture anywhere below `root` with that name. Nothing
        outside `root` is looked at.
        """
        found = self.inside(name)
        if found is not None:
            return found
        if self.by_name is None:
            self.by_name = {}
            avoided = tuple(f"{folder.relative_to(self.root).as_posix()}/" for folder in self.avoid)
            for path in list_pictures(self.root):
                if not path.startswith(avoided):
                    self.by_name.setdefault(path.rpartition("/")[2], []).append(path)
        same = self.by_name.get(name.rpartition("/")[2], [])
        return same[0] if len(same) == 1 else None

    def inside(self, name: str) -> str | None:
        """Likewise, in the folders alone.

        A path as it stands comes first, then without its leading folders, which may be those of another machine.
        """
        parts = path_parts(name)
        for first in range(len(parts)):
            tail = "/".join(parts[first:])
            for folder in self.folders:
                if tail in self._list(folder):
                    return f"{folder}/{tail}".removeprefix("./").lstrip("/")
        return None

    def _list(self, folder: str) -> set[str]:
        if folder not in self.listed:
            self.listed[folder] = set(list_pictures(self.root / folder))
        return self.listed[folder]


def path_parts(name: str) -> list[str]:
    """The folders and the name in a path, none of which leads out of a folder."""
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _faults(file: CocoPictures) -> list[Fault]:
    """What is wrong with a file beyond single pictures."""
    faults = []
    if file.strays:
        examples = "; ".join(file.stray_examples)
        what = f"{file.path}: {counted(file.strays, 'annotation')} of pictures that it does not list: {examples}."
        mend = "Add the pictures to `images`, or take the annotations out; they are left out of the truth."
        faults.append(Fault("fault", "unknown picture", what, (file.path,), mend))
    for name in file.doubled:
        what = f"{file.path} lists {name} more than once."
        mend = "It counts as one picture with the annotations of all its entries; take one of them out."
        faults.append(Fault("note", "picture listed twice", what, (file.path,), mend))
    return faults


def _shared(pairs: tuple[Pair, ...]) -> tuple[Fault, ...]:
    """Entries of different names that lead to one picture."""
    first: dict[str, Pair] = {}
    mend = "Mend the file_name of one of them."
    return tuple(
        Fault("fault", "two entries of one picture", f"{pair.mask}: two entries lead to {pair.image}.", (pair.image,),
              mend)
        for pair in pairs
        if first.setdefault(pair.image, pair) is not pair and first[pair.image].mask == pair.mask
    )  # fmt: skip


def _without_outline(file: CocoFile) -> list[str]:
    bare = int((file.outlines == Outline.NONE).sum())
    return _left_out(file, bare, len(file.outlines), "have no outline (segmentation)") if bare else []


def found_strays(file: CocoPictures) -> list[str]:
    """How many annotations are left out because their picture is not listed, as a sentence in a list."""
    return _left_out(file, file.strays, file.annotated, "are of pictures that it does not list") if file.strays else []


def _left_out(file: CocoPictures, count: int, of: int, why: str) -> list[str]:
    what = counted(of, "annotation")
    return [f"{file.path}: {count:,} of {what} {why}; left out. `kirie inspect` tells more."]
