"""What each picture of a run is called: in the names of its files, in tables, and by number in COCO files."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from kirie.classes import Classes
from kirie.coco_words import category_ids
from kirie.errors import KirieError
from kirie.reading.json_stream import json_entries
from kirie.reading.remote import Url


def file_names(paths: Sequence[Path | Url]) -> list[str]:
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


def table_names(paths: Sequence[Path | Url]) -> list[str]:
    """What tables call each picture: its file name, or its path where pictures of several folders share one."""
    shared = Counter(path.name for path in paths)
    return [path.name if shared[path.name] == 1 else path.as_posix() for path in paths]


class Listing(NamedTuple):
    """What a COCO file says of the pictures and classes that were looked for.

    Attributes:
        path: the file.
        images: the ids of pictures by their file names, without folders.
        categories: the ids of classes by their names; None where the file lists no categories.
    """

    path: str
    images: dict[str, set[int]]
    categories: dict[str, set[int]] | None


def read_listing(path: str | Path, paths: Sequence[Path | Url], classes: Classes) -> Listing:
    """Looks for pictures and classes in a COCO file, of which no more is kept than is asked for.

    Raises:
        KirieError: when the file cannot be read, or does not list pictures and categories as COCO's files do.
    """
    wanted = {"images": {each.name for each in paths}, "categories": set(classes.names)}
    found: dict[str, dict[str, set[int]]] = {}
    for key, entries in json_entries(path):
        for entry in entries if key in wanted else ():
            ids = found.setdefault(key, {})
            try:
                name = PurePath(entry["file_name"]).name if key == "images" else entry["name"].strip()
                if type(entry["id"]) is not int:
                    raise TypeError
            except (KeyError, TypeError, AttributeError) as error:
                raise KirieError(
                    f"{path} does not list pictures as a COCO file does: an object with `images`, each with a whole "
                    "`id` and a `file_name`, and with `categories`, each with a whole `id` and a `name`."
                ) from error
            if name in wanted[key]:
                ids.setdefault(name, set()).add(entry["id"])
    return Listing(str(path), found.get("images", {}), found.get("categories"))


def image_numbers(paths: Sequence[Path | Url], listing: Listing | None = None) -> list[int]:
    """The `image_id` of each picture: that of a COCO file that lists them, where one is given.

    Otherwise the number that is its file's name, as for COCO's own pictures, where every name is another number; else
    1, 2, 3...

    Raises:
        KirieError: when the file lists a picture not at all or twice.
    """
    if listing is not None:
        mend = "predict pictures that it lists"
        return [_only(listing.images, path.name, "picture", listing.path, mend) for path in paths]
    found = [int(path.stem) for path in paths if re.fullmatch("[0-9]{1,15}", path.stem)]
    return found if len(set(found)) == len(paths) else list(range(1, len(paths) + 1))


def category_numbers(classes: Classes, listing: Listing | None = None) -> tuple[int, ...]:
    """The `category_id` of each class: that of the category of its name in a COCO file, where one lists categories.

    Otherwise those of `coco_words.category_ids`.

    Raises:
        KirieError: when the file lists a class not at all or twice.
    """
    if listing is None or listing.categories is None:
        return category_ids(classes)
    mend = "give the file of data with the classes of the model"
    return tuple(_only(listing.categories, name, "category", listing.path, mend) for name in classes.names)


def _only(found: dict[str, set[int]], name: str, noun: str, path: str, mend: str) -> int:
    if len(found.get(name, ())) != 1:
        times = "more than one" if name in found else "no"
        raise KirieError(f"{path} lists {times} {noun} called {name}; {mend}.")
    return next(iter(found[name]))
