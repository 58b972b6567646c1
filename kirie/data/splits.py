"""Which pictures train, which choose the model and which test it: from folder names, list files or a seeded hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from kirie.errors import KirieError

SPLITS = ("train", "val", "test")
_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_MAX_LIST_BYTES = 2**26


def canonical(name: str) -> str | None:
    """The split that a folder, a list file or a person means by `name`: train, val or test; None for another word."""
    return _NAMES.get(name.lower())


def expect_split(name: str | None) -> str | None:
    """The split that `name` means; None stays None, for all pictures.

    Raises:
        KirieError: on a word that is no split.
    """
    if name is None:
        return None
    found = canonical(name)
    if found is None:
        raise KirieError(f"There is no split {name!r}; expected train, val (validation, valid) or test.")
    return found


def stem(path: str, suffixes: tuple[str, ...]) -> str:
    """A path without its ending, when the ending is one of `suffixes`; names with dots stay whole."""
    base, dot, end = path.rpartition(".")
    return base if dot and f".{end.lower()}" in suffixes else path


def list_files(folder: Path) -> dict[Path, str]:
    """The files train.txt, val.txt and test.txt of a folder, under any name of these splits, with their split."""
    named = {path: canonical(path.stem) for path in sorted(folder.glob("*.txt"))}
    return {path: split for path, split in named.items() if split}


def read_list_files(files: Mapping[Path, str], suffixes: tuple[str, ...]) -> dict[str, str]:
    """The split of each picture that list files name, by stem.

    A line holds a stem, a file name or a path; blank lines and lines that start with # are skipped.

    Args:
        files: list files, each with the split whose pictures it names.
        suffixes: endings of picture files.

    Raises:
        KirieError: when a file is too long or no text, or a picture stands in the lists of two splits.
    """
    found: dict[str, str] = {}
    for path, split in files.items():
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise KirieError(f"{path} has more than {_MAX_LIST_BYTES:,} bytes; expected one picture name a line.")
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise KirieError(f"{path} is no UTF-8 text; expected one picture name a line.") from None
        for line in lines:
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            key = stem(entry, suffixes)
            if found.setdefault(key, split) != split:
                raise KirieError(
                    f"{entry} stands in the lists of both {found[key]} and {split} in {path.parent}; take it out of "
                    "one."
                )
    return found


def listed_split(key: str, lists: dict[str, str]) -> str:
    """The split that lists give a picture, by its path without ending or by its name alone; '' when in none."""
    return lists.get(key) or lists.get(key.rsplit("/", 1)[-1], "")


def seeded_split(key: str, seed: int, val_fraction: float, test_fraction: float) -> str:
    """The split of a picture from its name (or its group's) and a seed alone.

    A hash of both gives a number in [0, 1) that falls below `val_fraction`, below the sum of both, or above. So a
    picture that is added moves no other picture; the shares hold on average, not exactly.
    """
    digest = hashlib.blake2b(f"{seed}:{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < val_fraction:
        return "val"
    return "test" if place < val_fraction + test_fraction else "train"


def group_pattern(group: str | None) -> re.Pattern[str] | None:
    """The compiled `group` expression.

    Raises:
        KirieError: when it is no regular expression or has no group in parentheses.
    """
    if group is None:
        return None
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise KirieError(f"data.group is {group!r}, which is no regular expression ({error}).") from None
    if pattern.groups < 1:
        raise KirieError(f"data.group is {group!r}; put the part that names the group in parentheses, as in '(.+)_'.")
    return pattern


def group_of(name: str, pattern: re.Pattern[str] | None) -> str:
    """What the first group of `pattern` finds in a file name; the name itself without pattern or find."""
    found = pattern.search(name) if pattern else None
    return (found.group(1) or name) if found else name
