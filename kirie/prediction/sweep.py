"""One picture predicted window by window, row after row, and what is final after each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie.errors import KirieError
from kirie.models.memory import HeapTrimmer
from kirie.prediction.blending import Blend, Choice, Rows
from kirie.prediction.grid import Grid
from kirie.prediction.pictures import Picture
from kirie.prediction.predictor import Predicts, in_batches, read_ahead
from kirie.prediction.stitching import Found, Stitcher
from kirie.reading.windows import LargePicture
from kirie.results import PanopticMap, to_instances


class Done(NamedTuple):
    """What is final after a row of windows.

    Attributes:
        row: its number.
        map: of a semantic model the labels of some rows of the picture, of a panoptic one those of stuff.
        objects: of an instance model or the things of a panoptic one.
        unread: why windows could not be read.
    """

    row: int
    map: Rows | None
    objects: Found | None
    unread: tuple[str, ...]


class Sweep:
    """A picture on the way from top to bottom.

    Args:
        predictor: for the windows; of a semantic model with scores and without clean-up, of a panoptic one with stuff
            of any area.
        grid: the windows of the picture.
        threshold: of a semantic map; see `Blend`.
        scores: whether finished rows of a semantic map have probabilities.
    """

    def __init__(
        self, predictor: Predicts, grid: Grid, *, threshold: float | None = None, scores: bool = False
    ) -> None:
        model = predictor.model
        self._predictor, self._grid = predictor, grid
        self._map: Blend | Choice | None = None
        if model.task == "semantic":
            self._map = Blend(grid, model.classes, threshold, scores=scores)
        elif model.task == "panoptic":
            self._map = Choice(grid, model.classes)
        self._objects = None if model.task == "semantic" else Stitcher(grid)

    def rows(self, picture: LargePicture, begin: int = 0) -> Iterator[Done]:
        """What is final after each row of windows, from the row `begin` on.

        Windows that cannot be read have neither labels (void) nor objects, and are told. Memory that is freed on the
        way is given back to the system.

        Raises:
            KirieError: when the predictor cannot do a window.
        """
        grid = self._grid
        trim = HeapTrimmer()  # a wide row takes minutes, and what its windows free lies between what is kept
        coming = read_ahead(lambda index: self._read(picture, begin + index), len(grid.rows) - begin, ahead=1)
        for row, (windows, unread) in enumerate(coming, begin):
            there = [(column, window) for column, window in enumerate(windows) if window is not None]
            answers = self._answers(there)
            for column, window in enumerate(windows):
                self._add(row, column, None if window is None else next(answers))
                trim()
            map_rows = None if self._map is None else self._map.end_row(row)
            found = None if self._objects is None else self._objects.end_row(row)
            yield Done(row, map_rows, found, unread)

    def _answers(self, windows: Sequence[tuple[int, Picture]]) -> Iterator[Any]:
        for batch in in_batches(windows, self._predictor.batch_size):
            yield from self._predictor([window for _, window in batch])

    def _read(self, picture: LargePicture, row: int) -> tuple[list[Picture | None], tuple[str, ...]]:
        """The windows of a row, None where one cannot be read, and why."""
        down = self._grid.rows[row]
        windows: list[Picture | None] = []
        unread = []
        try:
            band = picture.read(down.start, down.stop, 0, picture.size[1])
        except KirieError:  # of one tile, or a few: the windows that do not need them are predicted
            for across in self._grid.columns:
                try:
                    windows.append(picture.read(down.start, down.stop, across.start, across.stop))
                except KirieError as error:
                    windows.append(None)
                    unread.append(f"rows {down.start} to {down.stop}, columns {across.start} to {across.stop}: {error}")
        else:
            windows += [band[:, across.start : across.stop] for across in self._grid.columns]
        return windows, tuple(unread)

    def _add(self, row: int, column: int, answer: Any) -> None:
        labels: Any = None
        objects = answer
        if isinstance(answer, PanopticMap):
            labels, objects = stuff_labels(answer), to_instances(answer)
        elif self._objects is None:
            labels = None if answer is None else answer.scores
        if self._map is not None:
            self._map.add(row, column, labels)
        if self._objects is not None:
            self._objects.add(row, column, objects)

    # ---- stopping and going on

    def state(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """What is held after a row, for `restore`."""
        held = {} if self._map is None else self._map.state(row)
        return held | ({} if self._objects is None else self._objects.state())

    def restore(self, row: int, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on after a row that another run of the same has done."""
        if self._map is not None:
            self._map.restore(row, state)
        if self._objects is not None:
            self._objects.restore(state)


def stuff_labels(result: PanopticMap) -> npt.NDArray[Any]:
    """The label of the stuff at each pixel (H, W), void where there is none."""
    table = np.full(int(result.ids.max()) + 1, result.classes.void, np.int32)
    for segment in result.segments:
        if not segment.is_thing:
            table[segment.id] = segment.label
    labels = table[result.ids]
    return labels.astype(np.uint8) if result.classes.void == 255 else labels
