"""What stands for NumPy's arrays while a pickle is read: it checks what a file gives it, keeps it and runs nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.errors import KirieError

MAX_AXES = 16
_TYPE = re.compile(r"[<>|=]?([?bhilqBHILQefd]|b1|[iu][1248]|f[248])")  # the names of plain numbers
_SHORT = 16  # characters; names of types and byte orders have no more


class ElementType:
    """Stands for `numpy.dtype`: the type of plain numbers; texts, objects and records are refused."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        text = _short(name)
        if text is None or not _TYPE.fullmatch(text):
            what = type(name).__name__ if text is None else repr(text)
            raise KirieError(f"it holds an array of {what}, expected plain numbers")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order from `numpy.dtype`'s state (version, order, subtype, names, fields, ...)."""
        order = _short(state[1]) if isinstance(state, tuple) and len(state) > 4 else None
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise KirieError("it holds an array of records, expected plain numbers")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


class Array:
    """Stands for `numpy.ndarray`: shape, type and bytes as the file gives them, which must agree."""

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype("f4")
        self.raw: bytes | bytearray | str | None = None
        self.order = "C"

    def __setstate__(self, state: Any) -> None:
        """Takes `numpy.ndarray`'s state: (version, shape, type, whether in Fortran's order, bytes)."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise KirieError("it holds an array whose state is none of NumPy's")
        shape, kind, fortran, raw = state[-4:]
        self.fill(shape, kind, raw, "F" if fortran else "C")

    def fill(self, shape: Any, kind: Any, raw: Any, order: str) -> None:
        """Sets the contents after a check that the bytes are as many as shape and type say."""
        short = isinstance(shape, tuple) and len(shape) <= MAX_AXES
        if not short or any(type(side) is not int or side < 0 for side in shape) or not isinstance(kind, ElementType):
            raise KirieError("it holds an array whose shape or type is none of NumPy's")
        if not isinstance(raw, bytes | bytearray | str) or len(raw) != math.prod(shape) * kind.dtype.itemsize:
            raise KirieError("it holds an array that has fewer or more bytes than its shape says")
        self.shape, self.dtype, self.raw, self.order = shape, kind.dtype, raw, order

    def numbers(self) -> npt.NDArray[Any]:
        """The numbers, in an array that owns them, in this machine's byte order.

        Raises:
            KirieError: when the file never gave the array its contents.
        """
        if self.raw is None:
            raise KirieError("it holds an array without contents")
        try:
            data = self.raw.encode("latin-1") if isinstance(self.raw, str) else self.raw
        except UnicodeEncodeError:
            raise KirieError("it holds an array whose bytes are no bytes") from None
        flat = np.frombuffer(data, self.dtype).astype(self.dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


class Settings:
    """Stands for `argparse.Namespace`, in which some projects keep their command line; its contents are left out."""

    def __setstate__(self, state: Any) -> None:
        """Takes nothing."""


class Names(dict[Any, Any]):
    """Stands for `collections.OrderedDict`."""

    def __init__(self, *given: Any) -> None:
        super().__init__()
        for pair in given[0] if given else ():
            put(self, *pair)

    def __setstate__(self, state: Any) -> None:
        """Takes nothing: PyTorch hangs version numbers of layers on a state dict, which decide nothing here."""


def _empty_array(*_: Any) -> Array:
    """Stands for `numpy._reconstruct`: an array whose state comes next."""
    return Array()


def _array_of(raw: Any, kind: Any, shape: Any, order: Any) -> Array:
    """Stands for `numpy._frombuffer`."""
    array = Array()
    array.fill(shape, kind, raw, "F" if order == "F" else "C")
    return array


def number(kind: Any, raw: Any) -> int | float | bool:
    """Stands for `numpy.scalar`: a plain number for its type and bytes.

    Raises:
        KirieError: when the type is none of plain numbers or the bytes are not as many as it has.
    """
    if not isinstance(kind, ElementType):
        raise KirieError("it holds a NumPy number whose type is none of NumPy's")
    array = Array()
    array.fill((), kind, raw, "C")
    value: int | float | bool = array.numbers().item()
    return value


def _as_bytes(text: Any, coding: Any) -> str:
    """Stands for `_codecs.encode`, by which the second protocol writes bytes: the text, encoded only when needed."""
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise KirieError("it encodes a text otherwise than bytes are")
    return text


def _short(text: Any) -> str | None:
    """A short text, or bytes as one; None for anything else, which could be endless to look at."""
    if not isinstance(text, str | bytes) or len(text) > _SHORT:
        return None
    return text.decode("latin-1") if isinstance(text, bytes) else text


def _no_bytes() -> bytes:
    """Stands for `bytes`, called without anything by files that hold an empty one."""
    return b""


_NUMPY: dict[str, Callable[..., Any]] = {
    "numpy.dtype": ElementType,
    "numpy.ndarray": Array,
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": number for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_of for core in ("core", "_core")},
    "argparse.Namespace": Settings,
}
NAMES: dict[str, Callable[..., Any]] = {
    **_NUMPY,
    "collections.OrderedDict": Names,
    "_codecs.encode": _as_bytes,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
}
# For `torch.serialization.safe_globals`: what PyTorch's own reader does not know, under the names in files.
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(thing, name) for name, thing in _NUMPY.items()]


def with_arrays(content: Any, most: int) -> Any:
    """What was read, with NumPy arrays in place of their stand-ins and plain dicts for dicts, up to four dicts deep.

    Args:
        content: what a reader made of a file by way of `STAND_INS`.
        most: bytes that all arrays together may take; more than the file has can only be a trap.

    Raises:
        KirieError: with the reason only, when an array's contents are missing, no bytes, or too many.
    """
    made: dict[int, Any] = {}  # by the identity of the stand-in: two names may share an array
    dicts: dict[tuple[int, int], dict[Any, Any]] = {}  # by identity and depth: many names may share a dict
    left = most

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        if isinstance(value, Array):
            if id(value) not in made:
                made[id(value)] = value.numbers()
                left -= made[id(value)].nbytes
                if left < 0:
                    raise KirieError("it holds the same bytes again and again")
            return made[id(value)]
        if isinstance(value, dict) and depth:
            if (id(value), depth) not in dicts:
                # A dict's own `items`: a file can hang another on an OrderedDict.
                dicts[id(value), depth] = {name: plain(inner, depth - 1) for name, inner in dict.items(value)}
            return dicts[id(value), depth]
        return value

    return plain(content, 4)


def put(target: Any, name: Any, value: Any) -> None:
    """Sets an entry of a dict.

    Raises:
        KirieError: when it is no dict, or the key is no plain one.
    """
    # Any other key could take for ever to hash: a tuple of tuples of tuples...
    if not isinstance(target, dict) or type(name) not in (str, int, bytes):
        raise KirieError(f"it holds a dict with a key of type {type(name).__name__}, expected names")
    target[name] = value
