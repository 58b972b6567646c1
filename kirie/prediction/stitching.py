"""Objects of overlapping windows made objects of the picture, each counted once, also when it is larger than a window.

Every pixel of the picture belongs to one window, which answers for it: that in which it lies farthest from the edge.
An object that a window sees only where others answer is left to them, so that nothing which an edge cut off is kept.
Of what stays, objects of neighbouring windows are one where they agree about the pixels round the line between the two;
each then gives the pixels that its own window answers for, and chains of them make up an object of any size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.masks import Crop, Masks
from kirie.prediction.grid import Grid
from kirie.results import Instances
from kirie.run_lengths import union

SAME = 0.3  # objects of two windows are one where their IoU, round the line between the windows, is at least so much
LEAST_OVERLAP = 16  # pixels that windows have to share for it


class Box(NamedTuple):
    """A part of the picture, in pixels."""

    top: int
    left: int
    bottom: int
    right: int


class Found(NamedTuple):
    """Objects of a picture that are complete.

    Attributes:
        labels: (N,) int64.
        scores: (N,) float32.
        masks: N compressed run lengths, as COCO writes them.
    """

    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    masks: tuple[bytes, ...]


@dataclass(eq=False)
class _Piece:
    """What one window sees of an object: its mask, and the parts of it that other windows answer for, which have it."""

    label: int
    score: float
    crop: Crop
    group: int
    lost: list[Box] = field(default_factory=list)


@dataclass
class _Group:
    """An object so far: what is known of it, and the masks of its pieces that no later window can change."""

    label: int
    score: float
    masks: list[bytes] = field(default_factory=list)


class Stitcher:
    """Takes the objects of windows, row by row, and gives those that are complete.

    Args:
        grid: the windows, which share at least `LEAST_OVERLAP` pixels.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid, self._reach = grid, grid.shared // 4
        self._above: list[list[_Piece]] = [[] for _ in grid.columns]
        self._row: list[list[_Piece]] = []
        self._groups: dict[int, _Group] = {}
        self._home: dict[int, int] = {}  # of groups that were joined to another, since the row began
        self._next = 0

    def add(self, row: int, column: int, found: Instances | None) -> None:
        """Adds the objects of a window, in its own pixels; windows come in the grid's order. None where it has none."""
        own, (top, left) = self._own(row, column), self._corner(row, column)
        pieces = []
        rows = () if found is None else zip(found.labels, found.scores, found.masks.crops(), strict=True)
        for label, score, crop in rows:
            placed = Crop(crop.top + top, crop.left + left, crop.bits)
            if _part(placed, own).any():
                self._groups[self._next] = _Group(int(label), float(score))
                pieces.append(_Piece(int(label), float(score), placed, self._next))
                self._next += 1
        self._row.append(pieces)
        if not pieces:
            return
        if column:
            self._match(row, column, pieces, row, column - 1, self._row[column - 1])
        for other in range(max(column - 1, 0), min(column + 2, len(self._above))) if row else ():
            self._match(row, column, pieces, row - 1, other, self._above[other])

    def _match(
        self, row: int, column: int, here: Sequence[_Piece], row2: int, column2: int, there: Sequence[_Piece]
    ) -> None:
        """Joins the objects of two windows that are one, the likest first, each with one of the other window."""
        own, other, reach = self._own(row, column), self._own(row2, column2), self._reach
        line = Box(
            max(own.top, other.top) - reach,
            max(own.left, other.left) - reach,
            min(own.bottom, other.bottom) + reach,
            min(own.right, other.right) + reach,
        )
        first = [piece for piece in here if _touches(piece.crop, line)]
        second = [piece for piece in there if _touches(piece.crop, line)]
        pairs = [(_iou(a.crop, b.crop, line), i, j) for i, a in enumerate(first) for j, b in enumerate(second)
                 if a.label == b.label and _touches(a.crop, _box(b.crop))]  # fmt: skip
        taken: set[tuple[int, int]] = set()
        for iou, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
            if iou < SAME or (0, i) in taken or (1, j) in taken:
                continue
            taken |= {(0, i), (1, j)}
            first[i].lost.append(other)
            second[j].lost.append(own)
            self._join(first[i].group, second[j].group)

    def _join(self, first: int, second: int) -> None:
        low, high = sorted((self._root(first), self._root(second)))
        if low != high:
            kept, gone = self._groups[low], self._groups.pop(high)
            kept.score = max(kept.score, gone.score)
            kept.masks += gone.masks
            self._home[high] = low

    def _root(self, group: int) -> int:
        while group in self._home:
            group = self._home[group]
        return group

    def end_row(self, row: int) -> Found:
        """The objects that are complete after a row of windows, those first that began first."""
        last = row + 1 == len(self._grid.rows)
        for piece in (piece for pieces in self._above for piece in pieces):
            self._settle(piece)
        alive = set()
        for piece in (piece for pieces in self._row for piece in pieces):
            piece.group = self._root(piece.group)
            if last:
                self._settle(piece)
            else:
                alive.add(piece.group)
        done = [self._groups.pop(number) for number in sorted(set(self._groups) - alive)]
        self._above, self._row = self._row, []
        self._home.clear()
        return Found(
            np.array([group.label for group in done], np.int64),
            np.array([group.score for group in done], np.float32),
            tuple(union(group.masks, self._grid.size) for group in done),
        )

    def _settle(self, piece: _Piece) -> None:
        """Gives the mask of a piece, without what it lost, to its group."""
        bits = piece.crop.bits.copy()
        kept = Crop(piece.crop.top, piece.crop.left, bits)
        for box in piece.lost:
            _part(kept, box)[:] = False
        (mask,) = Masks(self._grid.size, (kept,)).rles()
        self._groups[self._root(piece.group)].masks.append(mask["counts"])

    def _own(self, row: int, column: int) -> Box:
        """The part of the picture that a window answers for."""
        down, across = self._grid.rows[row], self._grid.columns[column]
        return Box(down.first, across.first, down.last, across.last)

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        return self._grid.rows[row].start, self._grid.columns[column].start

    # ---- stopping and going on

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What is held after a row, for `restore`."""
        rows, lost, bits = [], [], []
        for column, piece in ((column, piece) for column, pieces in enumerate(self._above) for piece in pieces):
            height, width = piece.crop.bits.shape
            rows.append((column, piece.label, piece.group, *piece.crop[:2], height, width))
            lost += [(len(rows) - 1, *box) for box in piece.lost]
            bits.append(np.packbits(piece.crop.bits))
        masks = [(number, mask) for number, group in self._groups.items() for mask in group.masks]
        return {
            "pieces": np.array(rows, np.int64).reshape(-1, 7),
            "piece_scores": np.array([piece.score for pieces in self._above for piece in pieces], np.float64),
            "lost": np.array(lost, np.int64).reshape(-1, 5),
            "bits": np.concatenate([np.zeros(0, np.uint8), *bits]),
            "groups": np.array([(n, group.label) for n, group in self._groups.items()], np.int64).reshape(-1, 2),
            "group_scores": np.array([group.score for group in self._groups.values()], np.float64),
            "masks": np.array([(number, len(mask)) for number, mask in masks], np.int64).reshape(-1, 2),
            "run_lengths": np.frombuffer(b"".join(mask for _, mask in masks), np.uint8),
            "next": np.array(self._next),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on after a row that another run has done."""
        self._next = int(state["next"])
        for (number, label), score in zip(state["groups"].tolist(), state["group_scores"].tolist(), strict=True):
            self._groups[number] = _Group(label, score)
        place, packed = 0, state["run_lengths"].tobytes()
        for number, length in state["masks"].tolist():
            self._groups[number].masks.append(packed[place : place + length])
            place += length
        place, pieces = 0, []
        rows = zip(state["pieces"].tolist(), state["piece_scores"].tolist(), strict=True)
        for (column, label, group, top, left, height, width), score in rows:
            count = -(-height * width // 8)
            bits = np.unpackbits(state["bits"][place : place + count], count=height * width).astype(bool)
            place += count
            pieces.append(_Piece(label, score, Crop(top, left, bits.reshape(height, width)), group))
            self._above[column].append(pieces[-1])
        for index, *box in state["lost"].tolist():
            pieces[index].lost.append(Box(*box))


def instances(found: Found, size: tuple[int, int], classes: Classes) -> Instances:
    """Objects as instances of their picture (H, W)."""
    return Instances.from_masks(Masks(size, found.masks), found.labels, classes, found.scores)


def _box(crop: Crop) -> Box:
    return Box(crop.top, crop.left, crop.top + crop.bits.shape[0], crop.left + crop.bits.shape[1])


def _touches(crop: Crop, box: Box) -> bool:
    top, left, bottom, right = _box(crop)
    return top < box.bottom and box.top < bottom and left < box.right and box.left < right


def _part(crop: Crop, box: Box) -> npt.NDArray[np.bool_]:
    """The bits of a crop that lie in a box, as a view."""
    rows = slice(max(box.top - crop.top, 0), max(box.bottom - crop.top, 0))
    columns = slice(max(box.left - crop.left, 0), max(box.right - crop.left, 0))
    return crop.bits[rows, columns]


def _iou(a: Crop, b: Crop, box: Box) -> float:
    """The IoU of two masks within a box."""
    whole = int(_part(a, box).sum()) + int(_part(b, box).sum())
    bounds = [*zip(_box(a), _box(b), box, strict=True)]
    common = Box(*(max(edges) for edges in bounds[:2]), *(min(edges) for edges in bounds[2:]))
    if not whole or common.top >= common.bottom or common.left >= common.right:
        return 0.0
    shared = int((_part(a, common) & _part(b, common)).sum())
    return shared / (whole - shared)
