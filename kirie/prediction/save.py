"""Prediction from files to files: finding the pictures, writing the results, going on after a bad one."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kirie.classes import Classes
from kirie.data.layouts import list_pictures
from kirie.drawing import draw
from kirie.errors import KirieError
from kirie.files import whole_file, write_picture
from kirie.prediction.pictures import Picture
from kirie.prediction.predictor import Predictor, in_batches, read_ahead
from kirie.progress import tracked
from kirie.reading.images import IMAGE_SUFFIXES, read_image
from kirie.results import SemanticMap


@dataclass(frozen=True)
class Outcome:
    """What became of one picture.

    Attributes:
        path: the picture.
        written: the files that were written for it, each of them whole.
        error: why some or all were not, or None.
    """

    path: Path
    written: tuple[Path, ...] = ()
    error: str | None = None


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The picture files that paths, folders (their pictures, not those of folders inside) and glob patterns mean.

    The order is that of the inputs, names sorted within a folder or pattern; a file named twice is kept once.

    Raises:
        KirieError: for a URL, a pattern without a match or a folder without pictures.
    """
    found: dict[Path, Path] = {}
    for each in inputs:
        for path in _files_of(str(each)):
            found.setdefault(_whereabouts(path), path)
    return list(found.values())


def _files_of(text: str) -> list[Path]:
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        raise KirieError(f"{text} is a URL; kirie reads local files only. Download it and give the file's path.")
    path = Path(os.path.expanduser(text))
    if path.is_dir():
        members = [path / name for name in list_pictures(path, deep=False)]
        if not members:
            raise KirieError(f"The folder {path} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        return members
    if glob.has_magic(text) and not path.exists():
        members = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
        if not members:
            raise KirieError(f"No file matches {text}.")
        return members
    return [path]  # a missing file is reported in its turn, and the others go on


def _whereabouts(path: Path) -> Path:
    """The one absolute path of a file, however it was reached; links to other files stay files of their own."""
    return Path(os.path.realpath(path.parent), path.name)


def predict_files(
    predictor: Predictor, inputs: Sequence[str | Path], out: str | Path, *, kinds: Sequence[str] = ("labels", "overlay")
) -> Iterator[Outcome]:
    """Predicts picture files into a folder, in their order and in batches; a bad file is told and the rest go on.

    Args:
        predictor: the model, ready to run; with `scores=True` when "scores" is among the kinds.
        inputs: files, folders and glob patterns.
        out: the folder to write to; made when missing.
        kinds: rows of `WRITERS`.

    Returns:
        an iterator over what became of each picture; pictures are predicted as it is walked through.

    Raises:
        KirieError: at once, before anything is written, when an input means nothing, a kind is unknown, `out` is a
            file, or a result would replace a picture.
    """
    out = Path(out)
    check_kinds(kinds)
    if "scores" in kinds and not predictor.scores:
        raise KirieError("Saving scores needs a predictor that keeps them: Predictor(model, scores=True).")
    if out.exists() and not out.is_dir():
        raise KirieError(f"{out} is a file; results need a folder, which is made when it is missing.")
    paths = find_images(inputs)
    names = _names(paths)
    pictures = {_whereabouts(path) for path in paths}
    for path, name in zip(paths, names, strict=True):
        for target in (out / f"{name}{ENDINGS[kind]}" for kind in kinds):
            if _whereabouts(target) in pictures:
                raise KirieError(f"The result of {path} would replace the picture {target}; choose another folder.")
    return _outcomes(predictor, paths, names, out, kinds)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises a KirieError when there are no kinds to save, or one is no row of `WRITERS`."""
    unknown = [kind for kind in kinds if kind not in WRITERS]
    if unknown or not kinds:
        raise KirieError(f"Results can be saved as {', '.join(WRITERS)}; got {', '.join(unknown) or 'nothing'}.")


def _outcomes(
    predictor: Predictor, paths: Sequence[Path], names: Sequence[str], out: Path, kinds: Sequence[str]
) -> Iterator[Outcome]:
    def read(index: int) -> Picture | KirieError:
        try:
            return read_image(paths[index], predictor.model.in_channels)
        except KirieError as error:
            return error

    pictures = tracked(read_ahead(read, len(paths)), "predicting", len(paths))
    for batch in in_batches(zip(paths, names, pictures, strict=True), predictor.batch_size):
        results = iter(_results(predictor, [p for _, _, p in batch if not isinstance(p, KirieError)]))
        for path, name, picture in batch:
            result = picture if isinstance(picture, KirieError) else next(results)
            written: list[Path] = []
            try:
                if isinstance(picture, KirieError) or isinstance(result, KirieError):
                    raise result
                for kind in kinds:
                    written.append(WRITERS[kind](out, name, result, picture))
            except KirieError as error:
                yield Outcome(path, tuple(written), str(error))
            else:
                yield Outcome(path, tuple(written))


def _results(predictor: Predictor, pictures: Sequence[Picture]) -> list[Any]:
    """One result per picture, or the error that it gives by itself."""
    try:
        return predictor(pictures)
    except KirieError as error:
        if len(pictures) == 1:
            return [error]
    return [result for picture in pictures for result in _results(predictor, [picture])]


def save_labels(out: Path, name: str, result: SemanticMap, picture: Picture) -> Path:
    """Writes `NAME.png`: the class ids that the data set's own files use, with the class colours as palette.

    8 bits where all ids of the classes fit, else 16 bits without colours.
    """
    ids = result.classes.to_file_ids(result.labels)
    path = out / f"{name}{ENDINGS['labels']}"
    if max(*result.classes.ids, int(ids.max())) > 255:
        image = Image.fromarray(ids)
    else:
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(_palette(result.classes).tobytes())
    write_picture(path, image)
    return path


def save_overlay(out: Path, name: str, result: Any, picture: Picture) -> Path:
    """Writes `NAME_overlay.jpg`: the result drawn over its picture, with the names of its classes."""
    path = out / f"{name}{ENDINGS['overlay']}"
    write_picture(path, draw(result, picture, legend=True), quality=92)
    return path


def save_scores(out: Path, name: str, result: SemanticMap, picture: Picture) -> Path:
    """Writes `NAME_scores.npz`: `scores` (K, H, W) float16 probabilities and `classes`, the K names."""
    if result.scores is None:
        raise KirieError("The result has no scores; run the predictor with scores=True.")
    path = out / f"{name}{ENDINGS['scores']}"
    with whole_file(path) as stand_in:
        np.savez_compressed(stand_in, scores=result.scores.astype(np.float16), classes=np.array(result.classes.names))
    return path


WRITERS: dict[str, Callable[[Path, str, Any, Picture], Path]] = {
    "labels": save_labels,
    "overlay": save_overlay,
    "scores": save_scores,
}
ENDINGS = {"labels": ".png", "overlay": "_overlay.jpg", "scores": "_scores.npz"}  # of what each of them writes


def _palette(classes: Classes) -> npt.NDArray[np.uint8]:
    """RGB colours (256, 3) by file id; light grey where an id is no class."""
    colors = np.full((256, 3), 200, np.uint8)
    colors[list(classes.ids)] = classes.colors
    return colors


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each picture's results: its stem; with its folder, ending or a number where stems repeat."""
    taken: set[str] = set()
    names = []
    for path in paths:
        plain = (path.stem, f"{path.parent.name}_{path.stem}", f"{path.stem}_{path.suffix[1:]}")
        numbered = (f"{path.stem}_{number}" for number in itertools.count(2))
        # Some file systems hold A.png and a.png for one file.
        name = next(c for c in itertools.chain(plain, numbered) if c.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names
