"""Prediction of a picture that is larger than memory, from file to files; broken off, it goes on at the next row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kirie import __version__
from kirie.errors import KirieError, WriteError
from kirie.masks import MAX_PIXELS
from kirie.prediction.grid import Grid
from kirie.prediction.large_result import LargeResult, RowStore, earlier_job, margin
from kirie.prediction.manifest import File
from kirie.prediction.predicted import LargePredicted
from kirie.prediction.sweep import Done
from kirie.prediction.tiling import Tiled
from kirie.progress import tell
from kirie.reading.windows import is_zarr, large_size, open_large

STREAMED = 2**26  # pixels; with its result and the overlay such a picture takes 1 GB


def is_large(path: str | Path) -> bool:
    """Whether a picture is not read as a whole: a Zarr store, or a file of more than `STREAMED` pixels."""
    if is_zarr(path):
        return True
    try:
        height, width = large_size(path)
    except KirieError:  # told by whoever reads it
        return False
    return height * width > STREAMED


@contextmanager
def large_prediction(predictor: Tiled, file: File, home: Path, code: str, *, anew: bool) -> Iterator[LargePredicted]:
    """A large picture and what the model sees in it, for a block that writes the results.

    Rows that are done are kept in `.NAME.tiles` beside the manifest, until the block ends well.

    Args:
        predictor: what looks at the tiles.
        file: the picture.
        home: the folder of this run, where what is done so far is kept.
        code: the predictor's `fingerprint`.
        anew: forget what an earlier run has done.

    Raises:
        KirieError: when the picture cannot be opened, none of it can be read, or the system refuses to write.
    """
    tiles, model = predictor.tiles, predictor.model
    folder = home / f".{file.name}.tiles"
    if predictor.cleanup is not None:
        margin(predictor.cleanup)  # complain before hours of work
    with open_large(file.path, model.in_channels) as picture:
        job: dict[str, Any] = {"kirie": __version__, "predictor": code, "picture": file.state()}
        tile = [tiles.side, tiles.overlap]
        earlier = earlier_job(folder)
        if not tiles.asked and earlier == job | {"tile": earlier.get("tile")}:  # then there was another room for it
            tile = earlier["tile"]
        grid = Grid.of(picture.size, *tile)
        store = RowStore(folder, job | {"tile": tile}, anew=anew)
        if model.task != "semantic" and picture.size[0] * picture.size[1] > MAX_PIXELS:
            raise KirieError(
                f"{file.path} has {picture.size[0]:,} x {picture.size[1]:,} pixels, and objects are told apart in "
                f"pictures of at most {MAX_PIXELS:,}: cut it into smaller ones."
            )
        sweep = predictor.sweep(grid)
        state = store.state()
        if state is not None:
            try:
                sweep.restore(store.begin - 1, state)
            except (KeyError, ValueError, IndexError, RuntimeError):  # not as it was written
                store, sweep = RowStore(folder, job | {"tile": tile}, anew=True), predictor.sweep(grid)
        for done in _noting_room(sweep.rows(picture, store.begin)):
            store.add(done, sweep.state(done.row), picture.size)
            tell(f"{file.title}: {done.row + 1} of {len(grid.rows)} rows of tiles")
        tell("")
        result = LargeResult(
            store, len(grid.rows), picture.size, model.task, model.classes, predictor.cleanup, predictor.stuff_area
        )
        unread = result.unread()
        if unread is not None and unread.windows == len(grid):
            store.remove()
            raise KirieError(f"{file.path}: none of its {len(grid)} tiles could be read; {unread.first}")
        yield LargePredicted(*file, picture, result)
        store.remove()


def _noting_room(rows: Iterator[Done]) -> Iterator[Done]:
    """The rows; what a predictor refuses for want of memory, say, may succeed another time, and goes on from there."""
    try:
        yield from rows
    except KirieError as error:
        raise WriteError(str(error)) from error


def unread_part(one: LargePredicted) -> str | None:
    """What of a picture could not be read, in a sentence; None where all could."""
    unread = one.result.unread()
    if unread is None:
        return None
    left = "void" if one.result.task != "instance" else "without objects"
    return (
        f"{unread.windows} of the tiles of {one.path} could not be read and are {left} in the results; the first: "
        f"{unread.first}"
    )
