"""Results as files of one picture each: label maps, id maps, overlays, probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from kirie.classes import Classes
from kirie.drawing import draw
from kirie.errors import KirieError
from kirie.files import Frame, GrowingFile, growing_file, numbers_image, whole_file, write_picture, write_text
from kirie.prediction import large_files
from kirie.prediction.map_files import write_zarr
from kirie.prediction.predicted import LargePredicted, Predicted
from kirie.results import id_map, to_semantic


@dataclass(frozen=True)
class Run:
    """What is known of a run before its first picture.

    Attributes:
        out: the folder of the results.
        classes: of the model.
        channels: of the pictures.
        categories: what COCO files call the classes.
        growing: the files about all pictures, as they grow, or in their place what gathers their records.
    """

    out: Path
    classes: Classes
    channels: int
    categories: tuple[int, ...]
    growing: Growing | Gathered


class Growing:
    """The files about all pictures of a run: where each ends, so that a run that was broken off goes on there.

    Args:
        folder: where they lie.
        ends: where to go on, by name; {} begins all of them anew.

    Attributes:
        frames: what stands around the records of each file that was opened, by name.
    """

    def __init__(self, folder: Path, ends: Mapping[str, int]) -> None:
        self.folder, self._begun = folder, ends
        self._files: dict[str, GrowingFile] = {}
        self.frames: dict[str, Frame] = {}

    @contextmanager
    def open(self, name: str, head: str = "", foot: str = "", between: str = "") -> Iterator[Callable[[str], None]]:
        """What adds a record to a file of the folder; see `GrowingFile`."""
        frame = Frame(head, foot, between)
        with growing_file(self.folder / name, frame, end=self._begun.get(name)) as file:
            self._files[name], self.frames[name] = file, frame
            yield file.add

    @contextmanager
    def ended_by(self, path: Path, text: str) -> Iterator[None]:
        """Writes a file of the whole run when the block ends well."""
        yield
        write_text(path, text)

    def add(self, records: Iterable[tuple[str, str]]) -> None:
        """Adds what was `Gathered` to the files that were opened.

        Raises:
            KirieError: when the system refuses to write.
        """
        for name, record in records:
            self._files[name].add(record)

    @property
    def ends(self) -> dict[str, int]:
        """Where each file that was opened ends now, by name."""
        return {name: file.end for name, file in self._files.items()}


class Gathered:
    """What is written into the files about all pictures where these do not grow: records, to be added there."""

    def __init__(self) -> None:
        self._records: list[tuple[str, str]] = []

    @contextmanager
    def open(self, name: str, head: str = "", foot: str = "", between: str = "") -> Iterator[Callable[[str], None]]:
        """What keeps a record of a file; see `Growing.open`."""
        yield lambda record: self._records.append((name, record))

    @contextmanager
    def ended_by(self, path: Path, text: str) -> Iterator[None]:
        """Leaves the file to where the others grow."""
        yield

    def taken(self) -> list[tuple[str, str]]:
        """The names of files and the records that came since the last call, in their order."""
        records, self._records = self._records, []
        return records


Write = Callable[[Predicted], tuple[Path, ...]]  # gives the files that it wrote for that picture alone
Opened = Callable[[Run], AbstractContextManager[Write]]


def each_alone(write: Callable[[Path, Predicted], tuple[Path, ...]]) -> Opened:
    """A kind of results that is written picture by picture, by a function of the folder and the picture."""

    @contextmanager
    def opened(run: Run) -> Iterator[Write]:
        yield lambda one: write(run.out, one)

    return opened


def save_labels(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `NAME.png`: the class ids that the data set's own files use, with the class colours as palette.

    8 bits where all ids of the classes fit, else 16 bits without colours. Objects are written as `to_semantic` has
    them: what none covers is background. Of a large picture it is `NAME.tif`.
    """
    if isinstance(one, LargePredicted):
        return large_files.save_labels(out, one)
    result = to_semantic(one.result)
    ids = result.classes.to_file_ids(result.labels)
    path = out / f"{one.name}.png"
    if max(*result.classes.ids, int(ids.max())) <= 255:
        ids = ids.astype(np.uint8)
    write_picture(path, numbers_image(ids, dict(zip(result.classes.ids, result.classes.colors, strict=True))))
    return (path,)


def save_overlay(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `NAME_overlay.jpg`: the result drawn over its picture, with the names of its classes."""
    if isinstance(one, LargePredicted):
        return large_files.save_overlay(out, one)
    path = out / f"{one.name}_overlay.jpg"
    write_picture(path, draw(one.result, one.picture, legend=True), quality=92)
    return (path,)


def save_scores(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `NAME_scores.npz`: `scores` (K, H, W) float16 probabilities and `classes`, the K names.

    Of a picture larger than memory they would be larger still.
    """
    result = one.result
    if isinstance(one, LargePredicted) or result.scores is None:
        raise KirieError("The result has no scores; run the predictor with scores=True.")
    path = out / f"{one.name}_scores.npz"
    with whole_file(path) as stand_in:
        np.savez_compressed(stand_in, scores=result.scores.astype(np.float16), classes=np.array(result.classes.names))
    return (path,)


def save_zarr(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `NAME.zarr`: what `labels` writes as a Zarr array, with `classes`, ids by their names, as an attribute."""
    path = out / f"{one.name}.zarr"
    if isinstance(one, LargePredicted):
        classes, maps = large_files.label_classes(one.result), one.result.labels()
    else:
        result = to_semantic(one.result)
        classes, maps = result.classes, iter([result.labels])
    facts = {"classes": dict(zip(classes.names, classes.ids, strict=True))}
    write_zarr(path, map(classes.to_file_ids, maps), one.size, large_files.file_type(classes), facts)
    return (path,)


def save_ids(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `NAME_ids.png`: 16 bits, 1 for the first object, 2 for the second..., 0 for none; the surest lies on top.

    Beyond 65535 objects, and of a large picture, it is `NAME_ids.tif` of 32 bits.
    """
    if isinstance(one, LargePredicted):
        return large_files.save_ids(out, one)
    ids = id_map(one.result)
    if len(one.result) <= 65535:
        path = out / f"{one.name}_ids.png"
        write_picture(path, numbers_image(ids))
        return (path,)
    path = out / f"{one.name}_ids.tif"
    with whole_file(path) as stand_in:
        tifffile.imwrite(stand_in, ids.astype(np.uint32), compression="zlib")
    return (path,)
