"""The class table beside a data set: classes.json, classes.txt, or what annotation tools write."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kirie.classes import BACKGROUND, Classes
from kirie.data.splits import canonical
from kirie.errors import KirieError

_MAX_TABLE_BYTES = 2**24
_MAX_ID = 65535  # of 16-bit label files
_TABLE_KEYS = {"classes", "ignore_index", "ignore_colors", "colors", "things", "ids"}

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """What a class table says; `None` and empty where it is silent.

    Attributes:
        source: the file, or the published data set whose classes these are.
        names: class names.
        colors: their colours in colour-coded masks.
        things: names of countable classes.
        ids: their numbers in label files.
        void_ids: numbers that mean void.
        void_colors: colours that mean void.
        published: whether these are the classes of a published data set, and not those of a file beside the data.
    """

    source: str = ""
    names: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    things: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    void_ids: tuple[int, ...] | None = None
    void_colors: tuple[Color, ...] = ()
    published: bool = False

    @classmethod
    def of(cls, classes: Classes, source: str, void_colors: tuple[Color, ...] = ()) -> ClassTable:
        """The table of a published data set."""
        things = tuple(name for name, thing in zip(classes.names, classes.things, strict=True) if thing)
        return cls(source, classes.names, classes.colors, things, classes.ids, classes.void_ids, void_colors, True)


def read_class_table(root: Path) -> ClassTable:
    """The class table beside the data, the first there is of the files in `_READERS`, or an empty one.

    Of a folder that is called like a split (train, val, test) the folder above is asked too.

    Raises:
        KirieError: when the file is not as its reader describes.
    """
    for place in (root, root.resolve().parent) if canonical(root.resolve().name) else (root,):
        for name, reader in _READERS.items():
            path = place / name
            if not path.is_file():
                continue
            try:
                return reader(table_text(path), str(path))
            except (ValueError, RecursionError) as error:
                if isinstance(error, KirieError):
                    raise
                raise KirieError(f"{path} cannot be read as a table of classes ({error}).") from None
    return ClassTable()


def table_text(path: Path) -> str:
    """The text of a class table.

    Raises:
        KirieError: when the file is too long.
        UnicodeDecodeError: when it is no UTF-8 text.
    """
    if path.stat().st_size > _MAX_TABLE_BYTES:
        raise KirieError(f"{path} has more than {_MAX_TABLE_BYTES:,} bytes; expected a table of classes.")
    return path.read_text("utf-8-sig")


def table_from_json(values: Any, source: str) -> ClassTable:
    """The class table in parsed JSON: a list of names, or an object with `classes` and, as needed, other entries.

    `{"classes": ["sky", "coin"], "ids": [4, 7], "colors": [[0, 0, 255], [200, 0, 0]], "things": ["coin"],
    "ignore_index": 255, "ignore_colors": [[0, 0, 0]]}`; `ignore_index` is a number or a list.

    Raises:
        KirieError: when an entry is missing, unknown, of the wrong type or length, or not what label files can hold.
    """
    if isinstance(values, list):
        values = {"classes": values}
    if not isinstance(values, dict) or not isinstance(values.get("classes"), list) or not values["classes"]:
        raise KirieError(f'{source} must hold {{"classes": ["name", ...]}}.')
    unknown = sorted(set(values) - _TABLE_KEYS)
    if unknown:
        raise KirieError(f"{source} has unknown entries {unknown}; known are {sorted(_TABLE_KEYS)}.")
    ignore = values.get("ignore_index")
    try:
        table = ClassTable(
            source,
            tuple(_text(name) for name in values["classes"]),
            _colors(values.get("colors", ())),
            tuple(_text(name) for name in values.get("things", ())),
            tuple(_number(i) for i in values.get("ids", ())),
            None if ignore is None else tuple(_number(i) for i in (ignore if isinstance(ignore, list) else [ignore])),
            _colors(values.get("ignore_colors", ())),
        )
    except (TypeError, ValueError) as error:
        raise KirieError(f"{source} has an entry of the wrong type: {error}.") from None
    _check(table)
    return table


def _check(table: ClassTable) -> None:
    """Raises a KirieError that names the file when entries do not fit each other or the label files there can be."""
    source, count = table.source, len(table.names)
    strangers = sorted(set(table.things) - set(table.names))
    if strangers:
        raise KirieError(f"{source} lists {strangers} under things, which are not among its classes.")
    # One name may be that of the foreground alone, beside which there is a background.
    lengths = {0, 1, 2} if count == 1 else {0, count}
    for entry, values in (("ids", table.ids), ("colors", table.colors)):
        if len(values) not in lengths:
            what = f"{count} class{'es' if count > 1 else ''} but gives {len(values)} {entry}"
            raise KirieError(f"{source} names {what}; give one for each class.")
    for entry, ids in (("ids", table.ids), ("ignore_index", table.void_ids or ())):
        wrong = [i for i in ids if not 0 <= i <= _MAX_ID]
        if wrong:
            raise KirieError(f"{source} has {wrong[:6]} under {entry}; label files hold numbers in 0..{_MAX_ID}.")
    named: tuple[Any, ...]
    for entry, named in (("classes", table.names), ("ids", table.ids)):
        repeated = [str(value) for value, times in Counter(named).items() if times > 1]
        if repeated:
            raise KirieError(f"{source} repeats {', '.join(repeated[:6])} under {entry}; each class needs its own.")
    both = sorted(set(table.ids) & set(table.void_ids or ()))
    if both:
        raise KirieError(f"{source} has {both[:6]} under ids and under ignore_index; an id is a class or void.")


def _table_from_names(text: str, source: str) -> ClassTable:
    """A name per line, in the order of the ids."""
    names = [line.strip() for line in text.splitlines()]
    table = ClassTable(source, tuple(BACKGROUND if name == "_background_" else name for name in names if name))
    _check(table)
    return table


def _table_from_label_map(text: str, source: str) -> ClassTable:
    """The label map of CVAT and Datumaro: lines `name:red,green,blue:parts:actions` in the order of the ids.

    Rows called ignored, ignore or void are no class: their colour and their place mean void.
    """
    rows = [line.strip() for line in text.splitlines()]
    rows = [row for row in rows if row and not row.startswith("#")]
    names, colors, ids, void_ids, void_colors = [], [], [], [], []
    for index, row in enumerate(rows):
        parts = row.rsplit(":", 3)
        numbers = parts[1].split(",") if len(parts) == 4 else []
        if len(numbers) != 3 or not all(n.strip().isdecimal() and int(n) <= 255 for n in numbers):
            raise KirieError(f"{source} has the line {row!r:.80}; expected name:red,green,blue:parts:actions.")
        color = (int(numbers[0]), int(numbers[1]), int(numbers[2]))
        if parts[0].lower() in ("ignored", "ignore", "void"):
            void_ids.append(index)
            void_colors.append(color)
        else:
            names.append(parts[0])
            colors.append(color)
            ids.append(index)
    if not names:
        raise KirieError(f"{source} names no class; expected lines name:red,green,blue:parts:actions.")
    own = tuple(ids) if ids != list(range(len(ids))) else ()
    void = (255, *void_ids) if void_ids else None
    table = ClassTable(source, tuple(names), tuple(colors), (), own, void, tuple(void_colors))
    _check(table)
    return table


_READERS: dict[str, Callable[[str, str], ClassTable]] = {
    "classes.json": lambda text, source: table_from_json(json.loads(text), source),
    "classes.txt": _table_from_names,
    "labelmap.txt": _table_from_label_map,
    "class_names.txt": _table_from_names,  # labelme
}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a name, got {value!r}")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value


def _colors(values: Iterable[Any]) -> tuple[Color, ...]:
    colors = []
    for value in values:
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(0 <= _number(v) <= 255 for v in value):
            raise TypeError(f"expected a colour as three numbers in 0..255, got {value!r}")
        colors.append((value[0], value[1], value[2]))
    return tuple(colors)
