"""The classes of a data set or a model: names, colours, which are things, and the ids that files use for them."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.counting import occurrences
from kirie.errors import KirieError

BACKGROUND = "background"
MAX_CLASSES = 65534  # ids must fit beside the void id in 16 bits


def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` RGB colours that stay apart from their neighbours: steps of the golden angle round the hue circle."""
    colors = []
    for index in range(count):
        hue = (0.58 + index * 0.61803398875) % 1.0
        value = (0.95, 0.75, 0.55)[(index // 6) % 3]
        saturation = (0.75, 0.55)[(index // 18) % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colors)


@dataclass(frozen=True)
class Classes:
    """K classes, numbered 0..K-1 inside kirie whatever numbers the files use.

    Attributes:
        names: K different names.
        colors: K RGB colours, 0..255; made up when not given (background is black).
        things: K flags, True for countable objects; all False when not given.
        ids: K different numbers that label files use for the classes; 0..K-1 when not given.
        void_ids: numbers that label files use for pixels without a class.

    Raises:
        KirieError: when there are no classes or too many, the lengths differ, names or ids repeat, or a colour is not
            three values in 0..255.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = ()
    things: tuple[bool, ...] = ()
    ids: tuple[int, ...] = ()
    void_ids: tuple[int, ...] = (255,)

    def __post_init__(self) -> None:
        count = len(self.names)
        if isinstance(self.names, str) or not 1 <= count <= MAX_CLASSES:
            raise KirieError(f"Expected the names of 1 to {MAX_CLASSES} classes, got {_shortened(self.names)}.")
        fill = object.__setattr__
        fill(self, "names", tuple(str(name) for name in self.names))
        fill(self, "colors", tuple(_color(c) for c in self.colors) or self._made_up_colors())
        fill(self, "things", tuple(bool(t) for t in self.things) or (False,) * count)
        fill(self, "ids", tuple(int(i) for i in self.ids) or tuple(range(count)))
        # An id that is a class cannot mean void as well: 256 classes use 255.
        taken = set(self.ids)
        fill(self, "void_ids", tuple(int(i) for i in self.void_ids if int(i) not in taken))
        if len(set(self.names)) != count:
            raise KirieError(f"Class names repeat: {_repeated(self.names)}. Give each class a name of its own.")
        for field in ("colors", "things", "ids"):
            if len(getattr(self, field)) != count:
                raise KirieError(
                    f"{count} class names but {len(getattr(self, field))} {field}; give one for each class."
                )
        if len(set(self.ids)) != count:
            raise KirieError(f"Class ids repeat: {_repeated(self.ids)}. Each class needs a number of its own.")

    def _made_up_colors(self) -> tuple[tuple[int, int, int], ...]:
        if self.names and self.names[0] == BACKGROUND:
            return ((0, 0, 0), *palette(len(self.names) - 1))
        return palette(len(self.names))

    @classmethod
    def numbered(cls, count: int) -> Classes:
        """Returns `count` classes without known names; two or fewer are `background` and `foreground`."""
        if count <= 2:
            return cls((BACKGROUND, "foreground"))
        return cls(tuple(f"class {index}" for index in range(count)))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def void(self) -> int:
        """The value that marks void pixels in kirie's own label maps: 255, or 65535 beyond 255 classes."""
        return 255 if len(self) <= 255 else 65535

    @property
    def has_background(self) -> bool:
        """Whether class 0 is the background."""
        return self.names[0] == BACKGROUND

    def with_background(self) -> Classes:
        """The same classes with `background` as class 0; itself when it has one.

        The file ids move up by one where 0 is taken, as background is what no object covers and has no id of its own.
        """
        if self.has_background:
            return self
        shift = 1 if 0 in self.ids else 0
        return Classes(
            (BACKGROUND, *self.names),
            ((0, 0, 0), *self.colors),
            (False, *self.things),
            (0, *(i + shift for i in self.ids)),
            self.void_ids,
        )

    def subset(self, labels: Sequence[int]) -> Classes:
        """The classes of these numbers alone, in this order, with their own file ids."""
        names, colors, things, ids = (
            tuple(column[label] for label in labels) for column in (self.names, self.colors, self.things, self.ids)
        )
        return Classes(names, colors, things, ids, self.void_ids)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        # The table below is quickly made anew and 65536 entries long: it does not travel with every truth of a worker.
        return {name: value for name, value in self.__dict__.items() if name != "_table16"}

    @cached_property
    def _table16(self) -> npt.NDArray[np.int32]:
        table = np.full(65536, -1, np.int32)
        for index, file_id in enumerate(self.ids):
            if 0 <= file_id < 65536:
                table[file_id] = index
        for file_id in self.void_ids:
            if 0 <= file_id < 65536:
                table[file_id] = self.void
        return table

    def from_file_ids(self, ids: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], dict[int, int]]:
        """Class ids 0..K-1 for the ids that a label file uses, and what was unknown in it.

        Args:
            ids: (H, W) array of uint8 or uint16 file ids.

        Returns:
            The (H, W) label map (uint8, or int32 beyond 255 classes), unknown ids as void; and the unknown ids with
            their pixel counts (empty when the file is sound). The map is `ids` itself where nothing has to change.

        Raises:
            KirieError: when the array is neither uint8 nor uint16.
        """
        if ids.dtype not in (np.uint8, np.uint16):
            raise KirieError(f"Label files hold 8- or 16-bit whole numbers; got {ids.dtype}.")
        table = self._table16
        counts = occurrences(ids, int(ids.max(initial=0)) + 1)
        present = np.flatnonzero(counts)
        unknown = {int(i): int(counts[i]) for i in present[table[present] < 0]}
        dtype = np.uint8 if self.void == 255 else np.int32
        if np.array_equal(table[present], present):
            return ids.astype(dtype, copy=False), {}
        return np.where(table < 0, self.void, table).astype(dtype)[ids], unknown

    def to_file_ids(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """File ids (H, W) uint16 for an (H, W) label map.

        Void becomes the first void id; where there is none, 255 or, when that is a class, the highest free number.

        Raises:
            KirieError: when an id does not fit into 16 bits.
        """
        if min(self.ids) < 0 or max(self.ids) > 65535:
            raise KirieError(
                f"16-bit label files hold ids 0..65535; these classes use {min(self.ids)}..{max(self.ids)}."
            )
        taken = set(self.ids)
        table = np.zeros(65536, np.uint16)
        table[: len(self)] = self.ids
        table[self.void] = next(
            i for i in (*self.void_ids, 255, *range(65535, -1, -1)) if 0 <= i <= 65535 and i not in taken
        )
        mapped: npt.NDArray[np.uint16] = table[labels]
        return mapped

    def color_table(self) -> npt.NDArray[np.uint8]:
        """RGB colours by label as a (256 or 65536, 3) table; void is light grey, unused entries too."""
        table = np.full((self.void + 1, 3), 200, np.uint8)
        table[: len(self)] = self.colors
        return table

    def index(self, name: str) -> int:
        """The class id of a name.

        Raises:
            KirieError: when no class has that name; the message lists those that exist.
        """
        if name not in self.names:
            raise KirieError(f"No class is called {name!r}; the classes are {', '.join(self.names)}.")
        return self.names.index(name)

    def to_dict(self) -> dict[str, Any]:
        """The classes as plain JSON values."""
        return {
            "names": list(self.names),
            "colors": [list(color) for color in self.colors],
            "things": list(self.things),
            "ids": list(self.ids),
            "void_ids": list(self.void_ids),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Classes:
        """The classes that `to_dict` wrote.

        Raises:
            KirieError: when an entry is missing, unknown or of the wrong type.
        """
        kinds: dict[str, type] = {"names": str, "things": bool, "ids": int, "void_ids": int}
        if not isinstance(values, Mapping) or "names" not in values or set(values) - {*kinds, "colors"}:
            raise KirieError(f"Expected classes with the entries colors, {', '.join(kinds)}, got {_shortened(values)}.")
        given = {key: _list_of(kind, key, values[key]) for key, kind in kinds.items() if key in values}
        colors = _list_of(list, "colors", values.get("colors", ()))
        return cls(colors=tuple(_list_of(int, "each of colors", color) for color in colors), **given)


def _list_of(kind: type, key: str, entries: Any) -> tuple[Any, ...]:
    sound = isinstance(entries, list | tuple) and all(type(entry) is kind for entry in entries)
    if not sound:
        raise KirieError(f"Classes: {key} must be a list of {kind.__name__}, got {_shortened(entries)}.")
    return tuple(entries)


def _color(color: Iterable[int]) -> tuple[int, int, int]:
    values = tuple(int(v) for v in color)
    if len(values) != 3 or not all(0 <= v <= 255 for v in values):
        raise KirieError(f"A colour is three values in 0..255 (red, green, blue), got {values}.")
    return values[0], values[1], values[2]


def _repeated(values: Sequence[Any]) -> list[Any]:
    return sorted(value for value, count in Counter(values).items() if count > 1)[:10]


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
