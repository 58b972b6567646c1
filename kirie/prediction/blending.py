"""Maps of windows made one map of the picture, of which no more is held than what windows to come will change."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kirie.classes import Classes
from kirie.models.parts.label_maps import largest
from kirie.prediction.grid import Grid, Span

SPREAD = 1 / 6  # of the weights' standard deviation to what windows share: those of the edge count for next to nothing


class Rows(NamedTuple):
    """Finished rows of a map, as wide as the picture.

    Attributes:
        top: the row of the picture where they begin.
        labels: (h, W) uint8 or int32.
        scores: (K, h, W) float32 probabilities, or None.
    """

    top: int
    labels: npt.NDArray[Any]
    scores: npt.NDArray[np.float32] | None = None


class Blend:
    """The probabilities of overlapping windows averaged with weights that fall like a Gaussian towards shared edges.

    Windows come row by row. A pixel's label is final when no later window covers it; what is held of the others is as
    high as two rows of windows share.

    Args:
        grid: the windows.
        classes: the K classes; void is what no window has seen.
        threshold: where the probabilities of all classes but the first together reach it, the likeliest of them is
            the label; None takes the likeliest class of all.
        scores: whether finished rows have probabilities.
    """

    def __init__(self, grid: Grid, classes: Classes, threshold: float | None = None, *, scores: bool = False) -> None:
        self._grid, self._classes, self._threshold, self._scores = grid, classes, threshold, scores
        most = max((_shared(grid.rows, row) for row in range(len(grid.rows))), default=0)
        # Probabilities times weights and, as the last one, the sum of weights: a window may be missing.
        self._below = torch.zeros(len(classes) + 1, most, grid.size[1])
        self._begin(0)

    def _begin(self, row: int) -> None:
        span = self._grid.rows[row]
        self._left = torch.zeros(len(self._classes) + 1, span.stop - span.start, 0)
        self._height = (self._grid.rows[row + 1].start if row + 1 < len(self._grid.rows) else span.stop) - span.start
        kind: Any = np.uint8 if self._classes.void == 255 else np.int32
        shape = (self._height, self._grid.size[1])
        self._labels = np.empty(shape, kind)
        self._chances = np.empty((len(self._classes), *shape), np.float32) if self._scores else None

    def add(self, row: int, column: int, scores: npt.NDArray[np.floating[Any]] | None) -> None:
        """Adds the probabilities (K, h, w) of a window, which come in the grid's order; None where there are none."""
        grid, down, span = self._grid, self._grid.rows[row], self._grid.columns[column]
        sums = torch.zeros(len(self._classes) + 1, down.stop - down.start, span.stop - span.start)
        if scores is not None:
            weights = torch.outer(*(_weights(side, grid.shared) for side in sums.shape[1:]))
            torch.mul(torch.from_numpy(np.asarray(scores, np.float32)), weights, out=sums[:-1])
            sums[-1] = weights
        sums[:, :, : self._left.shape[2]] += self._left
        width = span.stop - span.start - _shared(grid.columns, column)
        self._left = sums[:, :, width:].clone()
        done, here = sums[:, :, :width], slice(span.start, span.start + width)
        above = _shared(grid.rows, row - 1) if row else 0
        done[:, :above] += self._below[:, :above, here]
        self._below[:, : _shared(grid.rows, row), here] = done[:, self._height :]
        self._finish(done[:, : self._height], here)

    def _finish(self, sums: Tensor, here: slice) -> None:
        chances, weight = sums[:-1], sums[-1]
        if self._threshold is None:
            labels = largest(chances)
        else:
            inside = weight - chances[0] >= self._threshold * weight
            labels = torch.where(inside, largest(chances[1:]) + 1, 0)
        unseen = weight == 0
        if bool(unseen.any()):
            labels[unseen] = self._classes.void
        self._labels[:, here] = labels.numpy()
        if self._chances is not None:
            self._chances[:, :, here] = (chances / weight.clamp(min=torch.finfo(torch.float32).tiny)).numpy()

    def end_row(self, row: int) -> Rows:
        """The rows that are final after a row of windows."""
        done = Rows(self._grid.rows[row].start, self._labels, self._chances)
        if row + 1 < len(self._grid.rows):
            self._begin(row + 1)
        return done

    def state(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """What is held after a row, for `restore`."""
        return {"below": self._below[:, : _shared(self._grid.rows, row)].numpy()}

    def restore(self, row: int, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on after a row that another run has done."""
        below = torch.from_numpy(state["below"])
        self._below[:, : below.shape[1]] = below
        if row + 1 < len(self._grid.rows):
            self._begin(row + 1)


class Choice:
    """Labels of windows, each taken for the pixels that the window answers for."""

    def __init__(self, grid: Grid, classes: Classes) -> None:
        self._grid, self._classes = grid, classes
        self._begin(0)

    def _begin(self, row: int) -> None:
        kind: Any = np.uint8 if self._classes.void == 255 else np.int32
        span = self._grid.rows[row]
        self._labels = np.full((span.last - span.first, self._grid.size[1]), self._classes.void, kind)

    def add(self, row: int, column: int, labels: npt.NDArray[Any] | None) -> None:
        """Adds the labels (h, w) of a window; None where there are none."""
        if labels is not None:
            down, across = self._grid.rows[row], self._grid.columns[column]
            self._labels[:, across.first : across.last] = labels[
                down.first - down.start : down.last - down.start,
                across.first - across.start : across.last - across.start,
            ]

    def end_row(self, row: int) -> Rows:
        """The rows that are final after a row of windows."""
        done = Rows(self._grid.rows[row].first, self._labels)
        if row + 1 < len(self._grid.rows):
            self._begin(row + 1)
        return done

    def state(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """What is held after a row: nothing."""
        return {}

    def restore(self, row: int, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on after a row that another run has done."""
        if row + 1 < len(self._grid.rows):
            self._begin(row + 1)


def _shared(spans: tuple[Span, ...], index: int) -> int:
    """How many pixels a window shares with the next one; 0 for the last."""
    return spans[index].stop - spans[index + 1].start if index + 1 < len(spans) else 0


@lru_cache(maxsize=8)
def _weights(side: int, shared: int) -> Tensor:
    """The weight of each pixel along a side: 1 where no other window need be, less towards both ends."""
    place = torch.arange(side, dtype=torch.float32) + 0.5
    lacking = (shared - torch.minimum(place, side - place)).clamp(min=0)
    return torch.exp(-0.5 * (lacking / (SPREAD * max(shared, 1))) ** 2)
