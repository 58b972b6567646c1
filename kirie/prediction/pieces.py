"""Pictures predicted and their own files written, one after another; what belongs into files about all is handed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kirie.errors import KirieError, WriteError
from kirie.prediction.kinds import KINDS
from kirie.prediction.large_pictures import is_large, large_prediction, unread_part
from kirie.prediction.manifest import File
from kirie.prediction.picture_files import Gathered, Growing, Run, Write
from kirie.prediction.pictures import Picture
from kirie.prediction.predicted import LargePredicted, Predicted
from kirie.prediction.predictor import Predicts, in_batches, read_ahead
from kirie.prediction.tiling import Tiled
from kirie.reading.images import read_image
from kirie.reading.windows import is_zarr


class Order(NamedTuple):
    """What is to be written of each picture, for whoever predicts it.

    Attributes:
        out: the folder of the results.
        home: where their manifest lies.
        kinds: names of `KINDS`.
        categories: see `picture_files.Run`.
        fingerprint: of what predicts.
        anew: whether what an earlier run has done of a large picture is forgotten.
    """

    out: Path
    home: Path
    kinds: tuple[str, ...]
    categories: tuple[int, ...]
    fingerprint: str
    anew: bool = False


class Piece(NamedTuple):
    """A picture that was predicted, and its own files written.

    Attributes:
        state: its `File.state` from before it was read.
        written: these files, below the folder of the results.
        records: what belongs into the files about all pictures: the name of a file and what it gets, in their order.
        error: why some or all was not done, or None.
        refused: whether the system refused to write, so that another run, with more room, may do better.
        ends: where the files about all pictures end with it, by name, when it is in them already.
    """

    state: list[Any]
    written: list[str]
    records: list[tuple[str, str]]
    error: str | None = None
    refused: bool = False
    ends: dict[str, int] | None = None


Engine = Callable[[Order, Sequence[File]], Generator[Piece, None, None]]  # one piece per file, in their order


def gathered(predictor: Predicts, order: Order, files: Sequence[File]) -> Generator[Piece, None, None]:
    """As `predicted`, with the records that belong into the files about all pictures."""
    model, records = predictor.model, Gathered()
    run = Run(order.out, model.classes, model.in_channels, order.categories, records)
    with ExitStack() as stack:
        writers = [stack.enter_context(KINDS[model.task][kind].opened(run)) for kind in order.kinds]
        yield from predicted(predictor, order, files, writers, records)


def predicted(
    predictor: Predicts, order: Order, files: Sequence[File], writers: Sequence[Write], about_all: Growing | Gathered
) -> Generator[Piece, None, None]:
    """Predicts pictures in batches: the next ones are read, and the last ones written, meanwhile.

    Args:
        predictor: what predicts.
        order: what is written.
        files: the pictures.
        writers: of the kinds of results.
        about_all: what the writers add records to.
    """
    task = _Task(predictor, order, writers, about_all)
    with ThreadPoolExecutor(1) as pool:
        pending = deque[Future[list[Piece]]]()
        pictures = read_ahead(lambda index: task.read(files[index]), len(files))
        for batch in in_batches(zip(files, pictures, strict=True), predictor.batch_size):
            whole = [picture for _, (_, picture) in batch if isinstance(picture, np.ndarray)]
            results = iter(_results(predictor, whole))
            ready = [(state, task.opened(file, picture, results)) for file, (state, picture) in batch]
            large = any(picture is None for _, (_, picture) in batch)
            if not large:
                pending.append(pool.submit(task.write, ready))
            while len(pending) > (0 if large else 1):
                yield from pending.popleft().result()
            if large:  # it is predicted row by row within the block that writes it: not beside the next batch
                yield from task.write(ready)
        while pending:
            yield from pending.popleft().result()


@dataclass(frozen=True)
class _Task:
    """What is done with each picture; see `predicted`."""

    predictor: Predicts
    order: Order
    writers: Sequence[Write]
    about_all: Growing | Gathered

    def read(self, file: File) -> tuple[list[Any], Picture | KirieError | None]:
        """The state of a picture's file, and then the picture, what is wrong with it, or None where it is large."""
        state = file.state()
        try:
            if isinstance(self.predictor, Tiled) and is_large(file.path):
                return state, None
            if is_zarr(file.path):
                raise KirieError(f"{file.path} is a Zarr store, which is read in tiles only: leave --tile none out.")
            return state, read_image(file.path, self.predictor.model.in_channels)
        except KirieError as error:
            return state, error

    @contextmanager
    def opened(self, file: File, picture: Picture | KirieError | None, results: Iterator[Any]) -> Iterator[Predicted]:
        """A picture and what the model sees in it, to be written within the block; results are for those in memory.

        Raises:
            KirieError: when it cannot be read or predicted.
        """
        if picture is None:
            assert isinstance(self.predictor, Tiled)
            kinds = KINDS[self.predictor.model.task]
            refused = [name for name in self.order.kinds if kinds[name].large == ()]
            if refused:
                raise KirieError(
                    f"{file.path} is larger than memory, and of such a picture {', '.join(refused)} cannot be written: "
                    "leave that out."
                )
            code, anew = self.order.fingerprint, self.order.anew
            with large_prediction(self.predictor, file, self.order.home, code, anew=anew) as one:
                yield one
            return
        result = picture if isinstance(picture, KirieError) else next(results)
        if isinstance(result, KirieError):
            raise result
        yield Predicted(*file, picture, result)

    def write(self, ready: Sequence[tuple[list[Any], AbstractContextManager[Predicted]]]) -> list[Piece]:
        """Writes the results of some pictures, of which each has its state and what gives the result."""
        return [self._piece(*each) for each in ready]

    def _piece(self, state: list[Any], opened: AbstractContextManager[Predicted]) -> Piece:
        written: list[Path] = []
        told, refused = None, False
        try:
            with opened as one:
                for write in self.writers:
                    written += write(one)
                told = unread_part(one) if isinstance(one, LargePredicted) else None
        except WriteError as error:
            told, refused = str(error), True
        except KirieError as error:
            told = str(error)
        names = [path.relative_to(self.order.out).as_posix() for path in written]
        if isinstance(self.about_all, Gathered):
            return Piece(state, names, self.about_all.taken(), told, refused)
        return Piece(state, names, [], told, refused, self.about_all.ends)


def _results(predictor: Predicts, pictures: Sequence[Picture]) -> list[Any]:
    """One result per picture, or the error that it gives by itself."""
    try:
        return predictor(pictures)
    except KirieError as error:
        if len(pictures) == 1:
            return [error]
    return [result for picture in pictures for result in _results(predictor, [picture])]
