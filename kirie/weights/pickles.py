"""Reads the numbers out of a pickle without unpickling it: arrays, numbers, texts, lists and dicts, and nothing else.

A pickle is a program for a small stack machine that may call any function it names. Here its instructions are listed
by the standard library's disassembler, which runs nothing, and only those that plain data need are followed. A name in
the file is never imported: the dozen names that NumPy's arrays need each lead to a stand-in of `arrays`, which checks
what it is given and keeps it; any other name is an error.

What a file may cost is bounded too. A pickle can name one thing a million times, so that a short program makes a dict
of dicts of dicts, or a key whose hash takes for ever. So steps are counted with what each call takes in, keys are
plain values, and what is shared stays shared. PyTorch's reader has no such bounds: `check_tensors` follows its programs
before it does.
"""

from __future__ import annotations

import mmap
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kirie.errors import KirieError
from kirie.weights.arrays import NAMES, Array, ElementType, Names, Settings, put, with_arrays

MAX_STEPS = 5_000_000  # instructions, and items handed to calls; a sound file has some twenty per array


class _Part:
    """Stands for a tensor, or a part of one, while a file of `torch.save` is checked."""

    def __init__(self, *_: Any) -> None:
        """Takes anything and keeps nothing."""


# What PyTorch calls to make a tensor; other names of its own are only named (`torch.FloatStorage`, `torch.float16`).
_TENSORS = {
    **{f"torch._utils._rebuild_{kind}": _Part for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")},
    "torch.Size": _Part,
    "torch.device": _Part,
}
_NAMED = re.compile(r"torch(\.storage)?\.\w+")


def read_arrays(path: Path) -> Any:
    """The plain data in a pickle file; arrays in dicts, up to four deep, as NumPy arrays.

    Nothing in the file is executed or imported, and memory stays within a few times the file's size, some hundred bytes
    a step aside. Bytes outside arrays may come as texts of as many characters, as the second protocol writes them.

    Raises:
        KirieError: with the reason only, when the file is no pickle, is cut short, or holds anything but plain data.
    """
    with _unsound(), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return with_arrays(_Machine().run(view), len(view))


def check_tensors(stream: Any, size: int, *, old: bool) -> None:
    """Follows the pickles of a file of `torch.save` without making a tensor, before PyTorch reads it.

    Args:
        stream: a binary file at the beginning of the pickle, or of the five pickles of an old file.
        size: bytes of the whole file; tensors that claim more numbers can only be a trap.
        old: whether it is in the format of before 2020: number, version, facts of the machine, content, storages.

    Raises:
        KirieError: with the reason only, when it is cut short or holds anything but tensors and plain data.
    """
    with _unsound():
        for _ in range(3 if old else 0):
            _Machine().run(stream)
        machine = _Machine(tensors=True)
        machine.run(stream)
        if sum(machine.storages.values()) > size:
            raise KirieError("its tensors have more numbers than the file holds")
        if old and set(_Machine().run(stream)) != set(machine.storages):
            raise KirieError("it does not list the storages of its tensors")


@contextmanager
def _unsound() -> Iterator[None]:
    """Turns what a wrong program ends in, the machine's own checks aside, into a KirieError."""
    try:
        yield
    except KirieError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise KirieError(f"it is cut short or no sound pickle ({error!s:.80})") from error


class _Machine:
    """Follows the instructions of a pickle that make plain data, and stand-ins for PyTorch's tensors where wanted."""

    def __init__(self, *, tensors: bool = False) -> None:
        self.names = {**NAMES, **_TENSORS} if tensors else NAMES
        self.tensors = tensors
        self.storages: dict[str, int] = {}  # how many numbers each has
        self.steps = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: Any) -> Any:
        """What the program in a binary file, read from where it stands, leaves on the stack."""
        argument: Any
        for operation, argument, _ in pickletools.genops(stream):
            name = operation.name
            self.take(1)
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

    def take(self, steps: int) -> None:
        """Counts steps and stops where they are too many."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise KirieError(f"it takes more than {MAX_STEPS:,} steps to read")

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
            put(self.stack[-1], name, value)

    def global_(self, argument: str) -> None:
        self.stack.append(self.stand_in(argument.replace(" ", ".", 1)))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise KirieError("it asks for a name that is no text")
        self.stack.append(self.stand_in(f"{module:.200}.{name:.200}"))

    def stand_in(self, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        if self.tensors and _NAMED.fullmatch(name):
            return _Part()
        raise KirieError(f"it asks for {name:.120}")

    def call(self, _: Any) -> None:
        given, called = self.stack.pop(), self.stack.pop()
        if not any(called is known for known in self.names.values()) or type(given) is not tuple:
            raise KirieError("it calls something that is no part of an array")
        # One list may be handed over again and again.
        self.take(len(given) + sum(len(value) for value in given if isinstance(value, list | tuple | dict)))
        self.stack.append(called(*given))

    def storage(self, _: Any) -> None:
        """Takes PyTorch's ("storage", type, key, place, length), which old files end with None or (key, from, to)."""
        given = self.stack.pop()
        if not self.tensors:
            raise KirieError("it uses the pickle instruction BINPERSID, which plain data do not need")
        if type(given) is not tuple or len(given) not in (5, 6):
            raise KirieError("it holds a tensor that is none of PyTorch's")
        _, kind, key, _, length, *view = given
        # Whatever serves PyTorch as a key must be plain, or it could take for ever to hash.
        plain = type(key) is str and type(length) is int and length >= 0 and isinstance(kind, _Part)
        if not plain or any(type(v) is not tuple or any(type(x) not in (str, int) for x in v) for v in view if v):
            raise KirieError("it holds a tensor that is none of PyTorch's")
        self.storages[key] = max(self.storages.get(key, 0), length)
        self.stack.append(_Part())

    def build(self, _: Any) -> None:
        state, thing = self.stack.pop(), self.stack[-1]
        if not isinstance(thing, ElementType | Array | Names | Settings):
            raise KirieError(f"it sets the inside of a {type(thing).__name__}")
        thing.__setstate__(state)


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
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
    "BINPERSID": _Machine.storage,
}
