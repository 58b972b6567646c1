"""Pictures with their truth as arrays: a few bytes each beside their names, and shared between worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import overload

import numpy as np

from kirie.data.layouts import Pair


class Texts(Sequence[str]):
    """Texts in one block of bytes. Python strings would be copied into each worker as soon as it reads them."""

    def __init__(self, texts: Iterable[str]) -> None:
        coded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.fromiter(accumulate(map(len, coded)), np.int64, len(coded))
        self._block = np.frombuffer(b"".join(coded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """One text, or the list of those in a slice."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        start = int(self._ends[at - 1]) if at else 0
        return self._block[start : int(self._ends[at])].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        block, start = self._block.tobytes(), 0
        for end in self._ends.tolist():
            yield block[start:end].decode("utf-8", "surrogatepass")
            start = end


class PairTable(Sequence[Pair]):
    """Pairs that are made when they are asked for."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        listed = list(pairs)
        self._rows = np.fromiter((pair.row for pair in listed), np.int32, len(listed))
        self._texts = {
            name: _Column([getattr(pair, name) for pair in listed]) for name in Pair._fields if name != "row"
        }

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        """One pair, or the list of those in a slice."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return Pair(row=int(self._rows[at]), **{name: column[at] for name, column in self._texts.items()})

    def __iter__(self) -> Iterator[Pair]:
        names = (*self._texts, "row")
        for values in zip(*self._texts.values(), self._rows.tolist(), strict=True):
            yield Pair(**dict(zip(names, values, strict=True)))


class _Column:
    """Texts of which many may be the same."""

    def __init__(self, texts: list[str]) -> None:
        codes: dict[str, int] = {}
        self._codes = np.fromiter((codes.setdefault(text, len(codes)) for text in texts), np.int32, len(texts))
        self._texts = Texts(codes)

    def __getitem__(self, index: int) -> str:
        return self._texts[int(self._codes[index])]

    def __iter__(self) -> Iterator[str]:
        texts = list(self._texts)
        return (texts[code] for code in self._codes.tolist())
