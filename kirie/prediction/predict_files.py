"""Prediction from files to files: finding the pictures, writing the results, going on after what was bad or broken."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kirie import __version__
from kirie.data.folder_layout import MASK_FOLDERS
from kirie.data.layouts import IMAGE_FOLDERS, list_pictures
from kirie.data.voc import OBJECTS
from kirie.errors import KirieError, WriteError
from kirie.files import remove_stand_ins
from kirie.prediction.fingerprint import fingerprint
from kirie.prediction.kinds import KINDS, USUAL, Kind, check_kinds
from kirie.prediction.large_pictures import is_large
from kirie.prediction.manifest import Entry, File, Manifest, open_manifest
from kirie.prediction.naming import category_numbers, file_names, image_numbers, read_listing, table_names
from kirie.prediction.picture_files import Growing, Run
from kirie.prediction.pieces import Engine, Order, predicted
from kirie.prediction.predictor import Predicts
from kirie.prediction.shards import WHOLE, Shard, join_shards
from kirie.progress import bar, say
from kirie.reading.images import IMAGE_SUFFIXES
from kirie.reading.remote import Url, is_url, pictures_at
from kirie.reading.windows import is_zarr


@dataclass(frozen=True)
class Outcome:
    """What became of one picture.

    Attributes:
        path: the picture.
        written: the files that were written for it, each of them whole.
        error: why some or all were not, or None.
        earlier: whether an earlier run did it.
    """

    path: Path | Url
    written: tuple[Path, ...] = ()
    error: str | None = None
    earlier: bool = False


def find_images(inputs: Sequence[str | Path], urls: bool = False) -> list[Path | Url]:
    """The picture files that paths, folders (their pictures, not those of folders inside) and glob patterns mean.

    The order is that of the inputs, names sorted within a folder or pattern; a file named twice is kept once.

    Args:
        inputs: paths, folders and patterns.
        urls: whether addresses of other stores may be among them, and patterns of such.

    Raises:
        KirieError: for a URL where there may be none, a pattern without a match or a folder without pictures.
    """
    found: dict[Path | Url, Path | Url] = {}
    for each in inputs:
        for path in _files_of(str(each), urls):
            found.setdefault(_whereabouts(path), path)
    return list(found.values())


def _files_of(text: str, urls: bool) -> Sequence[Path | Url]:
    if is_url(text):
        if not urls:
            raise KirieError(
                f"{text} is a URL; kirie reads local files only. Download it and give the file's path, or let workers "
                "of Ray read it: --engine ray."
            )
        found = pictures_at(text, IMAGE_SUFFIXES)
        return _files_of(str(found), urls) if isinstance(found, Path) else found
    path = Path(os.path.expanduser(text))
    if is_zarr(path):
        return [path]
    if path.is_dir():
        members = [path / name for name in list_pictures(path, deep=False)]
        members += sorted(each for each in path.iterdir() if is_zarr(each))
        if not members:
            raise KirieError(f"The folder {path} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        return members
    if glob.has_magic(text) and not path.exists():
        members = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file() or is_zarr(p)]
        if not members:
            raise KirieError(f"No file matches {text}.")
        return members
    return [path]  # a missing file is reported in its turn, and the others go on


def _whereabouts(path: Path | Url) -> Path | Url:
    """The one absolute path of a file, however it was reached; links to other files stay files of their own."""
    return path if isinstance(path, Url) else Path(os.path.realpath(path.parent), path.name)


def predict_files(
    predictor: Predicts,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    kinds: Sequence[str] | None = None,
    images: str | Path | None = None,
    shard: Shard = WHOLE,
    anew: bool = False,
    engine: Engine | None = None,
) -> Iterator[Outcome]:
    """Predicts picture files into a folder, in their order and in batches; a bad file is told and the rest go on.

    Files about all pictures (tables, COCO results) are put in place when the last picture is done. What was done is
    noted in `manifest.jsonl`: a run that was broken off, however it was, goes on when it is begun again with the same
    model, settings and pictures, and its files are in the end those of a run that was not.

    Args:
        predictor: a `Predictor` or a `PanopticPair`, ready to run; with `scores=True` when "scores" is among the kinds.
            With a `Tiled` one pictures may be larger than memory.
        inputs: files, folders and glob patterns.
        out: the folder to write to; made when missing.
        kinds: those of the model's task in `KINDS`; None takes the usual ones.
        images: a COCO file that says the `image_id` of each picture and the `category_id` of each class, for "coco".
            Without it the ids of pictures are the numbers in the file names where each is a number of its own, as
            COCO's are, and otherwise count from 1; those of classes are `coco_words.category_ids`.
        shard: the part of the pictures that this run predicts. Each shard keeps its own manifest; the last one to end
            joins what they wrote about all pictures, for which they need one folder.
        anew: begin anew, whatever was done.
        engine: who predicts in place of the predictor, with the same results: `distributed.ray_data.RayWorkers`, say.
            Then inputs may also be URLs, folders and patterns that fsspec reads.

    Returns:
        an iterator over what became of each picture, those of an earlier run first; pictures are predicted as it is
        walked through.

    Raises:
        KirieError: at once, before anything is written, when an input means nothing, a kind is unknown or does not
            serve the model's task, `out` is a file, or a result would replace a picture, its label file, the
            `data.yaml` of a data set or another result.
    """
    out, task = Path(out), predictor.model.task
    kinds = USUAL[task] if kinds is None else kinds
    check_kinds(kinds, task)
    if "scores" in kinds and not predictor.scores:
        raise KirieError("Saving scores needs a predictor that keeps them: Predictor(model, scores=True).")
    if is_url(out.as_posix().replace(":/", "://", 1)):
        raise KirieError(f"Results are written into a folder of this machine or a shared one, not to {out}.")
    if out.exists() and not out.is_dir():
        raise KirieError(f"{out} is a file; results need a folder, which is made when it is missing.")
    paths = find_images(inputs, engine is not None)
    model = predictor.model
    listing = None if images is None else read_listing(images, paths, model.classes)
    facts = zip(paths, file_names(paths), table_names(paths), image_numbers(paths, listing), strict=True)
    files = [File(*each) for each in facts]
    chosen = {kind: KINDS[task][kind] for kind in kinds}
    _check_targets(files, out, list(chosen.values()))
    categories = category_numbers(model.classes, listing)
    job = _Job(predictor, files[shard.number - 1 :: shard.of], out, chosen, categories, shard, anew, engine)
    return job.outcomes()


def _check_targets(files: Sequence[File], out: Path, kinds: Sequence[Kind]) -> None:
    """Raises a KirieError where a result would replace a picture, a label file or that of another picture."""
    pictures = {_whereabouts(file.path) for file in files}
    homes = {picture.parent for picture in pictures if not isinstance(picture, Url)}
    occupied = pictures | homes
    taken: dict[str, str] = {}
    for kind in kinds:
        kind.check(out)
    for file in files:
        own = _whereabouts(file.path)
        for pattern in _patterns(file, out, kinds):
            target = out / pattern.format(name=file.name)
            place = Path(os.path.realpath(target.parent), target.name)
            if place in occupied:
                raise KirieError(
                    f"The result of {file.path} would replace the picture {target}; choose another folder."
                )
            if not isinstance(own, Url) and _is_label(place, own) and target.exists():
                raise KirieError(f"The result of {file.path} would replace its label {target}; choose another folder.")
            if place.parent in homes and (target.is_file() or is_zarr(target)):
                raise KirieError(
                    f"The result of {file.path} would replace {target}, which lies among the pictures and may be a "
                    "label; choose another folder."
                )
            if taken.setdefault(str(target).casefold(), pattern) != pattern:
                raise KirieError(f"Two results would be written to {target}; predict these pictures one by one.")


def _patterns(file: File, out: Path, kinds: Sequence[Kind]) -> Iterator[str]:
    """The files that will be written for a picture, as its kinds name them."""
    for kind in kinds:
        large = kind.large or ()
        there = any((out / pattern.format(name=file.name)).exists() for pattern in large)
        yield from large if there and is_large(file.path) else kind.files


def _is_label(target: Path, picture: Path) -> bool:
    """Whether a file lies where data sets keep the labels of a picture: `labels/val` beside `images/val`, say.

    That of a YOLO data set may also lie beside the picture itself.
    """
    names = (*MASK_FOLDERS, OBJECTS)
    own, other = picture.parent.parts, target.parent.parts
    changed = [pair for pair in zip(own, other, strict=False) if pair[0] != pair[1]]
    apart = len(own) == len(other) and len(changed) == 1 and changed[0][0] in IMAGE_FOLDERS and changed[0][1] in names
    return apart or target == picture.with_suffix(".txt")


@dataclass(frozen=True)
class _Job:
    """What is to be done; see `predict_files`."""

    predictor: Predicts
    files: Sequence[File]
    out: Path
    kinds: Mapping[str, Kind]
    categories: tuple[int, ...]
    shard: Shard
    anew: bool
    engine: Engine | None

    def outcomes(self) -> Iterator[Outcome]:
        """What became of each picture, as it does."""
        home, code = self.shard.home(self.out), fingerprint(self.predictor)
        order = Order(self.out, home, tuple(self.kinds), self.categories, code, self.anew)
        facts: dict[str, Any] = {"kirie": __version__, "predictor": code}
        facts |= {"save": list(self.kinds), "categories": list(self.categories), "shards": self.shard.of}
        with open_manifest(home, self.out, facts, self.files, anew=self.anew) as manifest:
            for file, entry in zip(self.files, manifest.done, strict=False):
                written = tuple(self.out / name for name in entry.written)
                yield Outcome(file.path, written, entry.error, earlier=True)
            if not manifest.finished:
                yield from self._noted(order, Growing(home, manifest.ends), manifest)
        if self.shard.of > 1 and join_shards(self.out, self.shard.of, facts):
            say(f"all {self.shard.of} shards are done, and joined in {self.out}")

    def _noted(self, order: Order, growing: Growing, manifest: Manifest) -> Iterator[Outcome]:
        """Has the pictures predicted that are not done yet, and notes each."""
        model, files, noting = self.predictor.model, self.files[len(manifest.done) :], True
        run = Run(self.out, model.classes, model.in_channels, self.categories, growing)
        with ExitStack() as stack:
            writers = [stack.enter_context(kind.opened(run)) for kind in self.kinds.values()]
            manifest.begin(growing.frames)
            line = stack.enter_context(bar("predicting", len(files)))
            engine = self.engine or partial(predicted, self.predictor, writers=writers, about_all=growing)
            pieces = stack.enter_context(closing(engine(order, files)))
            for file, piece in zip(files, pieces, strict=True):
                told, refused, ends = piece.error, piece.refused, piece.ends
                if ends is None:
                    try:
                        growing.add(piece.records)
                    except WriteError as error:
                        told, refused = told or str(error), True
                    ends = growing.ends
                noting = noting and not refused  # with more room another run may do better
                if noting:
                    manifest.add(piece.state, Entry(piece.written, told, ends))
                line.advance()
                yield Outcome(file.path, tuple(self.out / name for name in piece.written), told)
        if noting:
            # Of workers that died in this run too, but otherwise not those of a run beside this one.
            until = math.inf if self.engine is not None else manifest.begun
            remove_stand_ins(lambda: (self.out / name for name in manifest.written()), until)
            manifest.finish()
