"""The class table beside a data set: classes.json or classes.txt."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kirie.data.splits import canonical
from kirie.errors import KirieError

_MAX_TABLE_BYTES = 2**24
_TABLE_KEYS = {"classes", "ignore_index", "ignore_colors", "colors", "things", "ids"}

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """What classes.json or classes.txt says; `None` and empty where it is silent.

    Attributes:
        source: the file.
        names: class names.
        colors: their colours in colour-coded masks.
        things: names of countable classes.
        ids: their numbers in label files.
        void_ids: numbers that mean void.
        void_colors: colours that mean void.
    """

    source: str = ""
    names: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    things: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    void_ids: tuple[int, ...] | None = None
    void_colors: tuple[Color, ...] = ()


def read_class_table(root: Path) -> ClassTable:
    """The class table beside the data: classes.json, else classes.txt, else an empty one.

    Of a folder that is called like a split (train, val, test) the folder above is asked too.

    Raises:
        KirieError: when the file is not as described in `table_from_json`.
    """
    for place in (root, root.resolve().parent) if canonical(root.resolve().name) else (root,):
        for name in ("classes.json", "classes.txt"):
            path = place / name
            if not path.is_file():
                continue
            if path.stat().st_size > _MAX_TABLE_BYTES:
                raise KirieError(f"{path} has more than {_MAX_TABLE_BYTES:,} bytes; expected a table of classes.")
            try:
                text = path.read_text("utf-8-sig")
                if name == "classes.txt":
                    lines = (line.strip() for line in text.splitlines())
                    return ClassTable(str(path), tuple(line for line in lines if line))
                return table_from_json(json.loads(text), str(path))
            except (ValueError, RecursionError) as error:
                if isinstance(error, KirieError):
                    raise
                raise KirieError(f"{path} cannot be read as a table of classes ({error}).") from None
    return ClassTable()


def table_from_json(values: Any, source: str) -> ClassTable:
    """The class table in parsed JSON: a list of names, or an object with `classes` and, as needed, other entries.

    `{"classes": ["sky", "coin"], "ids": [4, 7], "colors": [[0, 0, 255], [200, 0, 0]], "things": ["coin"],
    "ignore_index": 255, "ignore_colors": [[0, 0, 0]]}`; `ignore_index` is a number or a list.

    Raises:
        KirieError: when an entry is missing, unknown or of the wrong type.
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
    strangers = sorted(set(table.things) - set(table.names))
    if strangers:
        raise KirieError(f"{source} lists {strangers} under things, which are not among its classes.")
    return table


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
