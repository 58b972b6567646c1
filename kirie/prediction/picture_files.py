"""Results as files of one picture each: label maps, id maps, overlays, probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from kirie.classes import Classes
from kirie.drawing import draw
from kirie.errors import KirieError
from kirie.files import Frame, GrowingFile, growing_file, numbers_image, whole_file, write_picture
from kirie.prediction.pictures import Picture
from kirie.results import id_map, to_semantic


@dataclass(frozen=True)
class Predicted:
    """A picture and what a model saw in it.

    Attributes:
        path: the picture's file.
        name: what the files of its results are called, unlike that of any other picture of the run.
        title: what tables call the picture: its file name, or its path where file names repeat.
        number: what COCO files call it, its `image_id`.
        picture: (H, W, C) uint8.
        result: of the type that the model's task gives.
    """

    path: Path
    name: str
    title: str
    number: int
    picture: Picture
    result: Any


@dataclass(frozen=True)
class Run:
    """What is known of a run before its first picture.

    Attributes:
        out: the folder of the results.
        classes: of the model.
        channels: of the pictures.
        categories: what COCO files call the classes.
        growing: the files about all pictures, as they grow.
    """

    out: Path
    classes: Classes
    channels: int
    categories: tuple[int, ...]
    growing: Growing


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

    @property
    def ends(self) -> dict[str, int]:
        """Where each file that was opened ends now, by name."""
        return {name: file.end for name, file in self._files.items()}


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
    them: what none covers is background.
    """
    result = to_semantic(one.result)
    ids = result.classes.to_file_ids(result.labels)
    path = out / f"{one.name}.png"
    if max(*result.classes.ids, int(ids.max())) <= 255:
        ids = ids.astype(np.uint8)
    write_picture(path, numbers_image(ids, dict(zip(result.classes.ids, result.classes.colors, strict=True))))
    return (path,)


def save_overlay(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `NAME_overlay.jpg`: the result drawn over its picture, with the names of its classes."""
    path = out / f"{one.name}_overlay.jpg"
    write_picture(path, draw(one.result, one.picture, legend=True), quality=92)
    return (path,)


def save_scores(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `NAME_scores.npz`: `scores` (K, H, W) float16 probabilities and `classes`, the K names."""
    result = one.result
    if result.scores is None:
        raise KirieError("The result has no scores; run the predictor with scores=True.")
    path = out / f"{one.name}_scores.npz"
    with whole_file(path) as stand_in:
        np.savez_compressed(stand_in, scores=result.scores.astype(np.float16), classes=np.array(result.classes.names))
    return (path,)


def save_ids(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `NAME_ids.png`: 16 bits, 1 for the first object, 2 for the second..., 0 for none; the surest lies on top.

    Beyond 65535 objects it is `NAME_ids.tif` of 32 bits.
    """
    ids = id_map(one.result)
    if len(one.result) <= 65535:
        path = out / f"{one.name}_ids.png"
        write_picture(path, numbers_image(ids))
        return (path,)
    path = out / f"{one.name}_ids.tif"
    with whole_file(path) as stand_in:
        tifffile.imwrite(stand_in, ids.astype(np.uint32), compression="zlib")
    return (path,)
