"""What COCO's files of instances and of panoptic segments have alike: the lists of pictures and of categories."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie.data.pair_table import Texts
from kirie.errors import KirieError
from kirie.reading.json_stream import json_entries

MAX_IMAGES = 10_000_000
MAX_NAME = 4096  # characters of a file name, the most that file systems take
EXAMPLES = 3
NO_ID = -1  # of an annotation without a whole number as id

Entry = dict[str, Any]


class Category(NamedTuple):
    """A class by the number that the file has for it; whether it is a thing, and its colour, where that is read."""

    id: int
    name: str
    is_thing: bool | None = None
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class CocoPictures:
    """The N pictures of a file.

    Attributes:
        path: the file.
        categories: in the file's order.
        labelled: whether the file has annotations at all, if only an empty list; lists of test pictures have none.
        annotated: how many annotations it has.
        names: N paths of pictures as the file has them, with /; no two are equal.
        ids: N ids of the pictures, whole numbers or else texts.
        sizes: (N, 2) int64 H, W; 0, 0 where the file does not say.
        doubled: names of pictures that the file lists more than once; they have the annotations of all their entries.
        strays: annotations of pictures that the file does not list.
        stray_examples: some of them, in words.
    """

    path: str
    categories: tuple[Category, ...]
    labelled: bool
    annotated: int
    names: Texts
    ids: Sequence[str] | npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    doubled: tuple[str, ...]
    strays: int
    stray_examples: tuple[str, ...]

    def image_id(self, picture: int) -> int | str:
        """The id of picture number `picture`."""
        found = self.ids[picture]
        return found if isinstance(found, str) else int(found)


def read_lists(path: str | Path, reader: PictureReader, annotation: Callable[[Entry, str], None]) -> bool:
    """Gives the entries of a file to a reader, `annotation` being its method for those; whether there are annotations.

    Raises:
        KirieError: when the file cannot be read, is no JSON, or is not as COCO's files are.
    """
    steps = {"images": reader.image, "annotations": annotation, "categories": reader.category}
    seen = set()
    for key, entries in json_entries(path):
        step = steps.get(key)
        if step is None:
            continue
        seen.add(key)
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise KirieError(f"{path}: {key}[{number}] is {shortened(entry)}; expected an object as COCO has it.")
            step(entry, f"{path}: {key}[{number}]")
    if "images" not in seen:
        raise KirieError(
            f"{path} is no COCO {reader.title} file: it has no list `images`. Expected an object with the lists "
            "`images`, `annotations` and `categories`."
        )
    return "annotations" in seen


class PictureReader:
    """Takes pictures and categories in any order and packs them.

    Attributes:
        title: what the file is to hold, for a person.
    """

    title: ClassVar[str]

    def __init__(self, path: str) -> None:
        self.path = path
        self.categories: dict[int, Category] = {}
        self.codes: dict[int | str, int] = {}  # numbers of the ids of pictures as they come up, listed or not
        self.row_of: dict[int, int] = {}  # the row of a picture by such a number
        self.rows: dict[str, int] = {}  # and by its name
        self.doubled: dict[str, None] = {}
        self.sizes, self.row_codes = array("q"), array("i")
        self.image_codes = array("i")  # of the annotations

    def category(self, entry: Entry, where: str) -> None:
        """Takes an entry of `categories`."""
        self.take_category(Category(*self.id_and_name(entry, where)), where)

    def id_and_name(self, entry: Entry, where: str) -> tuple[int, str]:
        """The number and the name of a category.

        Raises:
            KirieError: when one of them is missing or none.
        """
        number, name = whole_number(entry.get("id")), entry.get("name")
        if number is None:
            raise KirieError(f"{where} has the id {shortened(entry.get('id'))}; expected a whole number.")
        if not isinstance(name, str) or not name.strip():
            raise KirieError(f"{where} has the name {shortened(name)}; expected a text.")
        return number, name.strip()

    def take_category(self, category: Category, where: str) -> None:
        """Keeps a category.

        Raises:
            KirieError: when its number is that of another, or it is there already as the other of thing and stuff.
        """
        known = self.categories.setdefault(category.id, category)
        if known.name == category.name and known.is_thing != category.is_thing:
            raise KirieError(f"{where} makes {category.name!r} both a thing and stuff; say one of them.")
        if known.name != category.name:
            raise KirieError(f"{where} has the id {category.id} of the category {known.name!r}; give each its own.")

    def image(self, entry: Entry, where: str) -> None:
        """Takes an entry of `images`."""
        code, name = self.code(entry.get("id"), "id", where), file_name(entry, where)
        size = [whole_number(entry.get(side)) or 0 for side in ("height", "width")]
        size = size if min(size) > 0 else [0, 0]
        row = self.rows.setdefault(name, len(self.rows))
        if row == len(self.row_codes):
            if row >= MAX_IMAGES:
                raise KirieError(f"{self.path} lists more than {MAX_IMAGES:,} pictures.")
            self.row_codes.append(code)
            self.sizes.extend(size)
        else:
            self.doubled[name] = None
            if size != self.sizes[2 * row : 2 * row + 2].tolist():
                raise KirieError(f"{where}: {name} is listed twice with different sizes; take one of them out.")
        if self.row_of.setdefault(code, row) != row:
            raise KirieError(f"{where}: the id {shortened(entry['id'])} is that of another picture; give each its own.")

    def code(self, stated: Any, key: str, where: str) -> int:
        """A number for the id of a picture.

        Raises:
            KirieError: when it is neither a whole number nor a text.
        """
        number = whole_number(stated)
        if number is None and not isinstance(stated, str):
            raise KirieError(f"{where} has the {key} {shortened(stated)}; expected a whole number or a text.")
        return self.codes.setdefault(stated if number is None else number, len(self.codes))

    def annotation_rows(self) -> npt.NDArray[np.int32]:
        """The row of the picture of each annotation (M,), -1 where it is not listed."""
        known = np.full(len(self.codes), -1, np.int32)
        for code, row in self.row_of.items():
            known[code] = row
        rows: npt.NDArray[np.int32] = known[np.frombuffer(self.image_codes, np.int32)]
        return rows

    def pictures(self, *, labelled: bool, strays: npt.NDArray[np.int32], called: Sequence[str]) -> dict[str, Any]:
        """What was taken, by the attributes of `CocoPictures`.

        Args:
            labelled: whether the file has annotations.
            strays: the numbers of the annotations whose picture is not listed.
            called: what to call the first of them.
        """
        ids = list(self.codes)
        own = [ids[code] for code in self.row_codes]
        told = zip(called, strays[: len(called)].tolist(), strict=True)
        examples = (f"{name} is of image_id {shortened(ids[self.image_codes[k]])}" for name, k in told)
        return {
            "path": self.path,
            "categories": tuple(self.categories.values()),
            "labelled": labelled,
            "annotated": len(self.image_codes),
            "names": Texts(self.rows),
            "ids": Texts(map(str, own)) if any(isinstance(i, str) for i in own) else np.array(own, np.int64),
            "sizes": packed(self.sizes, np.int64).reshape(-1, 2),
            "doubled": tuple(self.doubled),
            "strays": len(strays),
            "stray_examples": tuple(examples),
        }


def annotation_name(number: int, place: int) -> str:
    """How to name an annotation to a person: by its id, else by its place in the list."""
    return f"annotations[{place}]" if number == NO_ID else f"annotation {number}"


def merged_categories(files: Iterable[CocoPictures]) -> list[Category]:
    """The categories of all files of a data set, each once.

    Raises:
        KirieError: when two files disagree on one.
    """
    known: dict[int, Category] = {}
    for file in files:
        for category in file.categories:
            other = known.setdefault(category.id, category)
            if (other.name, other.is_thing) != (category.name, category.is_thing):
                told = [f"{c.name!r}{_kind(c)}" for c in (category, other)]
                raise KirieError(
                    f"{file.path} calls category {category.id} {told[0]}, and another file of the data set calls it "
                    f"{told[1]}; all files of a data set need the same categories."
                )
    return list(known.values())


def kept_categories(files: Mapping[str, CocoPictures], ignored: Collection[int], parts: str) -> list[Category]:
    """The categories of all files of a data set, each once, without those that are ignored.

    Args:
        files: by their paths.
        ignored: ids of categories.
        parts: what a category has, for the message where there is none.

    Raises:
        KirieError: when none is left, or two files disagree on one.
    """
    known = merged_categories(files.values())
    categories = [category for category in known if category.id not in ignored]
    if not categories:
        why = f" beside those of data.ignore: {list(ignored)}" if known else ""
        raise KirieError(f"{', '.join(files)} lists no `categories`{why}; expected the {parts} of each class.")
    return categories


def class_names(
    categories: Sequence[Category], given: Sequence[str] | None, files: Mapping[str, CocoPictures]
) -> tuple[str, ...]:
    """The names of classes: those that `data.classes` gives, else the categories' own, with the id where they repeat.

    Raises:
        KirieError: when more or fewer are given than there are categories.
    """
    if not given:
        times = Counter(category.name for category in categories)
        return tuple(c.name if times[c.name] == 1 else f"{c.name} ({c.id})" for c in categories)
    if len(given) != len(categories):
        raise KirieError(
            f"data.classes has {len(given)} names, but {', '.join(files)} {len(categories)} categories: "
            f"{', '.join(c.name for c in categories[:12])}."
        )
    return tuple(given)


def _kind(category: Category) -> str:
    return "" if category.is_thing is None else f" ({'a thing' if category.is_thing else 'stuff'})"


def file_name(entry: Entry, where: str) -> str:
    """The `file_name` of an entry, with /.

    Raises:
        KirieError: when it is none.
    """
    name = entry.get("file_name")
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or "\0" in name:
        raise KirieError(f"{where} has the file_name {shortened(name)}; expected the path of a picture.")
    return name.replace("\\", "/")


def packed(values: array[Any] | bytearray, dtype: Any) -> npt.NDArray[Any]:
    """The values where they lie, not to be written to."""
    found = np.frombuffer(values, dtype)
    found.flags.writeable = False
    return found


def whole_number(value: Any) -> int | None:
    """The whole number that a value means, also as 5.0 and "5"; None when it means none or more than 64 bits."""
    if type(value) is int and -(2**63) < value < 2**63:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and len(value) < 20 and value.isascii() and value.removeprefix("-").isdigit():
        value = int(value) if str(int(value)) == value else None
    return int(value) if isinstance(value, int) and abs(value) < 2**63 else None


def shortened(value: Any) -> str:
    """A value as it stands in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
