"""What each picture of a run is called: in the names of its files, in tables, and by number in COCO files."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from kirie.errors import KirieError


def file_names(paths: Sequence[Path]) -> list[str]:
    """A name for each picture's results: its stem; with its folder, ending or a number where stems repeat."""
    taken: set[str] = set()
    names = []
    for path in paths:
        plain = (path.stem, f"{path.parent.name}_{path.stem}", f"{path.stem}_{path.suffix[1:]}")
        numbered = (f"{path.stem}_{number}" for number in itertools.count(2))
        # Some file systems hold A.png and a.png for one file.
        name = next(c for c in itertools.chain(plain, numbered) if c.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def table_names(paths: Sequence[Path]) -> list[str]:
    """What tables call each picture: its file name, or its path where pictures of several folders share one."""
    shared = Counter(path.name for path in paths)
    return [path.name if shared[path.name] == 1 else path.as_posix() for path in paths]


def image_numbers(paths: Sequence[Path], listed: str | Path | None = None) -> list[int]:
    """The `image_id` of each picture: that of a COCO file that lists them, where one is given.

    Otherwise the number that is its file's name, as for COCO's own pictures, where every name is another number; else
    1, 2, 3...

    Raises:
        KirieError: when the file cannot be read, or lists a picture not at all or twice.
    """
    if listed is None:
        found = [int(path.stem) for path in paths if re.fullmatch("[0-9]{1,15}", path.stem)]
        return found if len(set(found)) == len(paths) else list(range(1, len(paths) + 1))
    numbers = _numbers_in(listed)
    for path in paths:
        if len(numbers.get(path.name, ())) != 1:
            times = "several pictures" if path.name in numbers else "no picture"
            raise KirieError(f"{listed} lists {times} called {path.name}; predict pictures that it lists.")
    return [next(iter(numbers[path.name])) for path in paths]


def _numbers_in(listed: str | Path) -> dict[str, set[int]]:
    """The ids of the pictures in a COCO file by their file names, without folders."""
    try:
        with open(listed, encoding="utf-8") as file:
            images: Any = json.load(file)["images"]
        numbers: dict[str, set[int]] = {}
        for image in images:
            if type(image["id"]) is not int:
                raise TypeError
            numbers.setdefault(PurePath(image["file_name"]).name, set()).add(image["id"])
    except OSError as error:
        raise KirieError(f"Cannot read {listed}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KirieError(
            f"{listed} does not list pictures as a COCO file does: an object with `images`, each with a whole `id` and "
            "a `file_name`."
        ) from error
    return numbers
