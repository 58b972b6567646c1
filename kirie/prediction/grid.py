"""How a large picture is covered by windows, and which part of it each window answers for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from kirie.errors import KirieError

STEP = 32  # windows begin at multiples: a network with strides gives other maps for pictures moved by less
LEAST = 2 * STEP


class Span(NamedTuple):
    """A window along one axis, in pixels of the picture.

    Attributes:
        start: of the window.
        stop: of the window.
        first: of the pixels that it answers for, its own: they end in the middle of what it shares with its neighbours.
        last: where they end.
    """

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Grid:
    """Windows that cover a picture, all of one size but those at the right and lower edge, which may be smaller.

    Attributes:
        size: (H, W) of the picture.
        rows: from top to bottom.
        columns: from left to right.
    """

    size: tuple[int, int]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @classmethod
    def of(cls, size: tuple[int, int], tile: int, overlap: int) -> Grid:
        """The grid of a picture (H, W) for windows of at most `tile` pixels a side that share `overlap` or more.

        Raises:
            KirieError: when the tile is below 64, or the overlap is not from 0 to half a tile.
        """
        check_tile(tile, overlap)
        return cls(size, _spans(size[0], tile, overlap), _spans(size[1], tile, overlap))

    @property
    def shared(self) -> int:
        """The fewest pixels that two neighbours share; 0 for a single window."""
        return min((a.stop - b.start for spans in (self.rows, self.columns) for a, b in pairwise(spans)), default=0)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


def check_tile(tile: int, overlap: int) -> None:
    """Raises a KirieError where windows cannot be so large or share so much."""
    if type(tile) is not int or tile < LEAST:
        raise KirieError(f"A tile has a side of at least {LEAST} pixels, got {tile!r:.60}.")
    if type(overlap) is not int or not 0 <= overlap <= tile // 2:
        raise KirieError(f"Tiles of {tile} pixels share 0 to {tile // 2} with the next one, got {overlap!r:.60}.")


def _spans(length: int, tile: int, overlap: int) -> tuple[Span, ...]:
    """The windows along an axis, the fewest there can be, evenly spread and no larger than they have to be."""
    if length <= tile:
        return (Span(0, length, 0, length),)
    most = tile // STEP * STEP
    count = 2
    while _share(length, most, count) < overlap:
        count += 1
    side = next(s for s in range(STEP, most + 1, STEP) if s < length and _share(length, s, count) >= overlap)
    steps = -(-(length - side) // STEP)  # from the first start to the last
    starts = [STEP * (index * steps // (count - 1)) for index in range(count)]
    stops = [min(start + side, length) for start in starts]
    cuts = [0, *((stop + start) // 2 for stop, start in zip(stops, starts[1:], strict=False)), length]
    return tuple(Span(*each) for each in zip(starts, stops, cuts, cuts[1:], strict=False))


def _share(length: int, side: int, count: int) -> int:
    """The fewest pixels that two of so many evenly spread windows share; negative where there is a gap."""
    steps = -(-(length - side) // STEP)
    return side - STEP * -(-steps // (count - 1))
