"""Results as files of one picture each: label maps, id maps, overlays, probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from kirie.classes import Classes
from kirie.drawing import draw
from kirie.errors import KirieError
from kirie.files import whole_file, write_picture
from kirie.prediction.pictures import Picture
from kirie.results import to_semantic


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
    """

    out: Path
    classes: Classes
    channels: int


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
    if max(*result.classes.ids, int(ids.max())) > 255:
        image = Image.fromarray(ids)
    else:
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(_palette(result.classes).tobytes())
    write_picture(path, image)
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
    order = np.argsort(one.result.scores, kind="stable")
    ids = one.result.masks[order].id_map([int(index) + 1 for index in order])
    if len(order) <= 65535:
        path = out / f"{one.name}_ids.png"
        write_picture(path, Image.fromarray(ids.astype(np.uint16)))
        return (path,)
    path = out / f"{one.name}_ids.tif"
    with whole_file(path) as stand_in:
        tifffile.imwrite(stand_in, ids.astype(np.uint32), compression="zlib")
    return (path,)


def _palette(classes: Classes) -> npt.NDArray[np.uint8]:
    """RGB colours (256, 3) by file id; light grey where an id is no class."""
    colors = np.full((256, 3), 200, np.uint8)
    colors[list(classes.ids)] = classes.colors
    return colors
