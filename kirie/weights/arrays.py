"""Reads the numbers out of a pickle without unpickling it: arrays, numbers, texts, lists and dicts, and nothing else.

A pickle is a program for a small stack machine that may call any function it names. Here its instructions are listed
by the standard library's disassembler, which runs nothing, and only those that plain data need are followed. A name in
the file is never imported: the dozen names that NumPy's arrays need each lead to a stand-in of this file, which checks
what it is given and keeps it; any other name is an error.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.errors import KirieError

MAX_STEPS = 5_000_000  # instructions; a sound file has some twenty per array
MAX_AXES = 16
_TYPE = re.compile(r"[<>|=]?([?bhilqBHILQefd]|b1|[iu][1248]|f[248])")  # the names of plain numbers


class ElementType:
    """Stands for `numpy.dtype`: the type of plain numbers; texts, objects and records are refused."""

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        name = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not _TYPE.fullmatch(name):
            raise KirieError(f"it holds an array of {name!r:.40}, expected plain numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order from `numpy.dtype`'s state (version, order, subtype, names, fields, ...)."""
        order = state[1] if isinstance(state, tuple) and len(state) > 4 else None
        order = order.decode("latin-1") if isinstance(order, bytes) else order
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
        whole = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        if not whole or len(shape) > MAX_AXES or not isinstance(kind, ElementType):
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
            _put(self, *pair)

    def __setstate__(self, state: Any) -> None:
        """Takes nothing: PyTorch hangs version numbers of layers on a state dict, which decide nothing here."""


def _empty_array(*_: Any) -> Array:
    """Stands for `numpy._reconstruct`: an array whose state comes next."""
    return Array()


def _array_of(raw: Any, kind: Any, shape: Any, order: Any) -> Array:
    """Stands for `numpy._frombuffer`."""
    array = Array()
    array.fill(shape, kind, raw, str(order))
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
_NAMES: dict[str, Callable[..., Any]] = {
    **_NUMPY,
    "collections.OrderedDict": Names,
    "_codecs.encode": _as_bytes,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
}
# For `torch.serialization.safe_globals`: what PyTorch's own reader does not know, under the names in files.
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(thing, name) for name, thing in _NUMPY.items()]


def read_arrays(path: Path) -> Any:
    """The plain data in a pickle file; arrays in dicts, up to four deep, as NumPy arrays.

    Nothing in the file is executed or imported, and memory stays within a few times the file's size. Bytes outside
    arrays may come as texts of as many characters, as the second protocol writes them.

    Raises:
        KirieError: with the reason only, when the file is no pickle, is cut short, or holds anything but plain data.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return with_arrays(_Machine().run(view), len(view))
    # The machine's own checks aside, a wrong program ends in any of these.
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise KirieError(f"it is cut short or no sound pickle ({error!s:.80})") from error


def with_arrays(content: Any, most: int) -> Any:
    """What was read, with NumPy arrays in place of their stand-ins and plain dicts for dicts, up to four dicts deep.

    Args:
        content: what a reader made of a file by way of `STAND_INS`.
        most: bytes that all arrays together may take; more than the file has can only be a trap.

    Raises:
        KirieError: with the reason only, when an array's contents are missing, no bytes, or too many.
    """
    made: dict[int, Any] = {}  # by the identity of the stand-in: two names may share an array
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
            # A dict's own `items`: a file can hang another on an OrderedDict.
            return {name: plain(inner, depth - 1) for name, inner in dict.items(value)}
        return value

    return plain(content, 4)


def _put(target: Any, name: Any, value: Any) -> None:
    # Any other key could take for ever to hash: a tuple of tuples of tuples...
    if not isinstance(target, dict) or type(name) not in (str, int, bytes):
        raise KirieError(f"it holds a dict with a key of type {type(name).__name__}, expected names")
    target[name] = value


class _Machine:
    """Follows the instructions of a pickle that make plain data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, view: mmap.mmap) -> Any:
        """What the program leaves on the stack."""
        stream: Any = view  # has the reading methods of a file
        argument: Any
        for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            name = operation.name
            if count >= MAX_STEPS:
                raise KirieError(f"it takes more than {MAX_STEPS:,} steps to read")
            if name == "STOP":
                return self.stack.pop()
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _MAKES:
                self.stack.append(_MAKES[name]())
            elif name in _MEMO:
                self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
            elif name in _RECALL:
                self.stack.append(self.memo[int(argument)])
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise KirieError(f"it uses the pickle instruction {name}, which plain data do not need")
        raise KirieError("it is cut short")

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self, _: Any = None) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def pop(self, _: Any = None) -> Any:
        return self.stack.pop() if self.stack else self.since_mark()

    def tuple_of(self, count: int) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def tuple_since_mark(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append(tuple(values))

    def list_since_mark(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append(values)

    def dict_since_mark(self, _: Any) -> None:
        values = self.since_mark()
        self.stack.append({})
        self.put_pairs(values)

    def append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self.extend(self.since_mark())

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise KirieError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)

    def set_item(self, _: Any) -> None:
        value, name = self.stack.pop(), self.stack.pop()
        self.put_pairs([name, value])

    def set_items(self, _: Any) -> None:
        self.put_pairs(self.since_mark())

    def put_pairs(self, values: list[Any]) -> None:
        for name, value in zip(values[::2], values[1::2], strict=True):
            _put(self.stack[-1], name, value)

    def global_(self, argument: str) -> None:
        self.stack.append(self.stand_in(argument.replace(" ", ".", 1)))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self.stand_in(f"{module!s:.200}.{name!s:.200}"))

    def stand_in(self, name: str) -> Callable[..., Any]:
        if name not in _NAMES:
            raise KirieError(f"it asks for {name:.120}")
        return _NAMES[name]

    def call(self, _: Any) -> None:
        given, called = self.stack.pop(), self.stack.pop()
        if not any(called is known for known in _NAMES.values()) or type(given) is not tuple:
            raise KirieError("it calls something that is no part of an array")
        self.stack.append(called(*given))

    def build(self, _: Any) -> None:
        state, thing = self.stack.pop(), self.stack[-1]
        if not isinstance(thing, ElementType | Array | Names | Settings):
            raise KirieError(f"it sets the inside of a {type(thing).__name__}")
        thing.__setstate__(state)


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_MAKES: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_RECALL = {"GET", "BINGET", "LONG_BINGET"}
_STEPS: Mapping[str, Callable[[_Machine, Any], Any]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.since_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_since_mark,
    "LIST": _Machine.list_since_mark,
    "DICT": _Machine.dict_since_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}
