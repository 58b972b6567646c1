"""From one format of data sets to another: every picture with its truth, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from kirie.conversion import WRITERS, writer_class
from kirie.conversion.mending import Fix, leaks, mended, write_fixes
from kirie.conversion.writer import Entry, Writer
from kirie.data import open_dataset
from kirie.data.dataset import Dataset
from kirie.data.folders import FolderDataset
from kirie.data.layouts import FolderSettings
from kirie.data.splits import SPLITS
from kirie.errors import KirieError, counted
from kirie.files import write_picture
from kirie.progress import bar, say
from kirie.reading.headers import IMAGE_SUFFIXES, image_facts

SHOWN = 10  # bad pictures that are named one by one


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        path: the new data set.
        format: a row of `WRITERS`.
        title: the format in words.
        splits: pictures of each split; '' where the new data set has none.
        objects: how many it holds; 0 for maps of classes.
        skipped: why pictures were left out, a sentence for each of them.
        notes: what the new format could not hold, and what else a person should know, a sentence each.
        fixes: what was mended, each also a row of `fixes.csv`.
    """

    path: Path
    format: str
    title: str
    splits: dict[str, int]
    objects: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    fixes: tuple[Fix, ...] = ()

    @property
    def pictures(self) -> int:
        """How many were written."""
        return sum(self.splits.values())


class _Picture(NamedTuple):
    """A picture of the source, and what it is called in the new data set."""

    dataset: Dataset
    number: int
    split: str
    name: str


def convert(
    source: str | Path,
    destination: str | Path,
    to: str | None = None,
    *,
    task: str | None = None,
    settings: FolderSettings | None = None,
    draw_splits: bool = False,
    polygons: bool = False,
    link: bool = False,
    skip_bad: bool = False,
    fix: bool = False,
) -> Conversion:
    """Writes a data set in another format. Pictures are copied byte for byte; those of code are written as PNG.

    What the new format cannot hold is told on standard error and in `Conversion.notes`. The folder appears when all of
    it is written; an error or a stop leaves nothing.

    Args:
        source: the data set, in any format that kirie reads, or your own `package.module:function`.
        destination: the folder to make; it may exist when it is empty.
        to: the format, a row of `conversion.WRITERS`: masks, ids, coco, coco_panoptic, yolo, voc, cityscapes or
            ade20k. With `fix` it may be left out, for one that holds what the source does.
        task: how to read the source: semantic, instance or panoptic; None for what its files serve, and for objects or
            segments where the new format holds nothing else. Of panoptic truth such a format gets the things.
        settings: how to read the source's folders; `short_side` is not heeded.
        draw_splits: whether a source without splits gets those that the seed draws (`settings.val_fraction`...); it
            stays without otherwise.
        polygons: whether `coco` gets polygons in place of run lengths; they stand for the very same masks.
        link: whether to make symbolic links to the source's pictures in place of copies.
        skip_bad: whether to leave pictures out that cannot be converted, and tell; otherwise the first one is an error.
        fix: whether to mend what can be mended without asking (see `mending.mended` and `mending.leaks`), to leave out
            pictures that cannot be used or that another split has too, and to list it all in `fixes.csv`.

    Returns:
        what was written.

    Raises:
        KirieError: when the format is unknown or cannot hold these classes or this task, the destination is not free,
            a picture is bad, or the system refuses to write. Nothing is written then.
    """
    if to is None:
        to = _same_format(source, task, settings, fix=fix)
    form = writer_class(to)
    if polygons and to != "coco":
        raise KirieError(f"Polygons are a choice for coco; {to} has one way to write a mask.")
    target = _free(Path(source), Path(destination))
    dataset, told_first = _opened(source, form, task, settings)
    parts, notes = _parts(dataset, draw_splits=draw_splits)
    notes = [*told_first, *notes]
    splits = tuple(split for split in parts if split)
    pictures = list(_pictures(parts, one_folder=form.one_folder))
    fixes: list[Fix] = []
    if fix:
        channels = (settings or FolderSettings()).channels
        out = leaks([(each.dataset, each.number, each.split) for each in pictures], channels=channels)
        gone = {leak.place for leak in out}
        fixes += [leak.fix for leak in out]
        pictures = [each for place, each in enumerate(pictures) if place not in gone]
    with _appearing(target) as root:
        options = {"polygons": True} if polygons else {}
        writer = form(root, dataset.classes, dataset.task, splits, **options)
        skipped, turned = _write(writer, pictures, fixes if fix else None, link=link, skip_bad=skip_bad or fix)
        writer.finish()
        if fix:
            fixes += [Fix(each.dataset.name(each.number), each.split, "left out: cannot be used", why)
                      for each, why in skipped]  # fmt: skip
            write_fixes(root, fixes)
    if turned:
        words = "with an EXIF rotation: the truth is for the picture turned upright, as kirie reads it"
        notes.append(f"{counted(turned, 'picture')} {words}.")
    counts = Counter(picture.split for picture in pictures) - Counter(each.split for each, _ in skipped)
    done = {split: counts[split] for split in parts}
    told = tuple(why for _, why in skipped)
    notes += writer.notes()
    conversion = Conversion(target, to, form.title, done, writer.objects, told, tuple(notes), tuple(fixes))
    for note in conversion.notes:
        say(note)
    return conversion


def _free(source: Path, destination: Path) -> Path:
    """The absolute path of a destination that may be written.

    Raises:
        KirieError: when it is not free or lies in the source.
    """
    target = destination.expanduser().resolve()
    home = source.resolve()
    if home.is_dir() and target.is_relative_to(home):
        raise KirieError(f"{destination} lies in the data set {source}; choose a folder beside it.")
    if target.exists() and not target.is_dir():
        raise KirieError(f"{destination} is a file; a data set needs a folder, which is made when it is missing.")
    if target.exists() and any(target.iterdir()):
        raise KirieError(f"{destination} is not empty; choose a new or an empty folder. Nothing is ever written over.")
    return target


def _same_format(source: str | Path, task: str | None, settings: FolderSettings | None, *, fix: bool) -> str:
    """The format for a mended copy: one that holds what the source does.

    Raises:
        KirieError: when nothing is to be mended, so that a format must be named.
    """
    if not fix:
        raise KirieError(f"Name the format to convert {source} to: one of {', '.join(WRITERS)}.")
    dataset: Any = open_dataset(source, task=task, settings=settings)
    if dataset.task == "semantic":
        return "masks"
    kind = dataset.form.kind if isinstance(dataset, FolderDataset) else ""
    return "ids" if kind in ("ids", "instance_folders") else "coco_panoptic" if dataset.task == "panoptic" else "coco"


def _opened(
    source: str | Path, form: type[Writer], task: str | None, settings: FolderSettings | None
) -> tuple[Dataset, list[str]]:
    """The source, read for its objects or segments where the format needs them, and what is left out by that.

    Raises:
        KirieError: when it cannot be opened, or does not tell apart what the format needs.
    """
    dataset = open_dataset(source, task=task, settings=settings)
    if form.needs_segments:
        return (dataset if dataset.task == "panoptic" else _as_segments(source, form, dataset, task, settings)), []
    if not form.needs_objects or dataset.task == "instance":
        return dataset, []
    if dataset.task == "panoptic":
        objects = open_dataset(source, task="instance", settings=settings)
        return objects, [f"Stuff is left out, as {form.title} holds objects alone."]
    if task is None:
        try:
            return open_dataset(source, task="instance", settings=settings), []
        except KirieError:
            pass  # it has no objects: the sentence below says what that means here
    raise KirieError(
        f"{source} says the class of each pixel and not which object it belongs to, so it cannot become {form.title}, "
        f"which holds objects. Formats of classes serve: --to masks, or {', '.join(_of_classes())}."
    )


def _as_segments(
    source: str | Path, form: type[Writer], dataset: Dataset, task: str | None, settings: FolderSettings | None
) -> Dataset:
    """The source read as panoptic truth, where nobody asked for another.

    Raises:
        KirieError: when it is none, or is to be read for another task.
    """
    if task is not None:
        raise KirieError(
            f"{form.title} holds a segment for every pixel, and {source} was to be read for task {task!r}; leave the "
            "task out, or say panoptic."
        )
    try:
        return open_dataset(source, task="panoptic", settings=settings)
    except KirieError as error:
        served = "masks" if dataset.task == "semantic" else "coco"
        raise KirieError(f"{source} cannot become {form.title}: {error} What it holds fits --to {served}.") from error


def _of_classes() -> list[str]:
    forms = {name: writer_class(name) for name in WRITERS if name != "masks"}
    return [name for name, form in forms.items() if not (form.needs_objects or form.needs_segments)]


def _parts(dataset: Dataset, *, draw_splits: bool) -> tuple[dict[str, Dataset], list[str]]:
    """The source by its splits, '' for all of it where it has none, and what is left out."""
    notes = list(dataset.left_out)
    if dataset.unfound:
        notes.append(f"{counted(len(dataset.unfound), 'listed picture')} not there, left out.")
    every = dataset.only(None, own_size=True)
    parts = {}
    for split in dataset.splits or (SPLITS if draw_splits else ()):
        try:
            parts[split] = dataset.only(split, own_size=True)
        except KirieError:
            if dataset.splits:
                raise
    if not parts:
        return {"": every}, notes
    rest = len(every) - sum(map(len, parts.values()))
    if rest > 0:
        notes.append(f"{counted(rest, 'picture')} in no split, left out.")
    return parts, notes


def _pictures(parts: dict[str, Dataset], *, one_folder: bool) -> Iterator[_Picture]:
    """Every picture with its new name; names differ within a split, or everywhere for `one_folder`."""
    groups = [list(parts)] if one_folder else [[split] for split in parts]
    for group in groups:
        members = [(split, index) for split in group for index in range(len(parts[split]))]
        shown = [parts[split].name(index) for split, index in members]
        own = [parts[split].file_facts(index).get("image") for split, index in members]
        files = [Path(file or name) for file, name in zip(own, shown, strict=True)]  # samples at hand have no files
        names = _distinct(files, [split for split, _ in members], shown)
        for (split, index), name in zip(members, names, strict=True):
            yield _Picture(parts[split], index, split, name)


def _distinct(files: Sequence[Path], splits: Sequence[str], shown: Sequence[str]) -> list[str]:
    """A name for each picture, all made alike: the shortest of some ways that keeps them apart.

    Some file systems hold A.png and a.png for one file.
    """
    stems = [_plain(file.stem) for file in files]
    ways = (
        stems,
        [f"{split}_{stem}" for split, stem in zip(splits, stems, strict=True)],
        [_plain(name.replace("/", "_").replace(".", "_")) for name in shown],
    )
    apart = (names for names in ways if len({name.casefold() for name in names}) == len(names))
    return next(apart, [f"{number:06d}_{stem}" for number, stem in enumerate(stems, 1)])


def _plain(stem: str) -> str:
    """A stem that list files can hold: without line ends, spaces around, and what starts a comment or ends a name."""
    stem = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "_", stem)
    stem = re.sub(r"^[.#\s]+|\s+$", "_", stem)
    base, dot, end = stem.rpartition(".")
    return f"{base}_{end}" if dot and f".{end.lower()}" in IMAGE_SUFFIXES else stem


def _write(
    writer: Writer, pictures: Sequence[_Picture], fixes: list[Fix] | None, *, link: bool, skip_bad: bool
) -> tuple[list[tuple[_Picture, str]], int]:
    """Writes the pictures in turn, mended where there is a list of fixes to add to.

    Returns:
        those left out, with their fault; and how many carry an EXIF rotation.
    """
    skipped: list[tuple[_Picture, str]] = []
    turned = 0
    with bar("converting", len(pictures)) as line:
        for picture in pictures:
            try:
                turned += _write_one(writer, picture, fixes, link=link)
            except KirieError as error:
                if not skip_bad:
                    raise KirieError(
                        f"{error} Nothing was written; mend it, or leave such pictures out: --skip-bad."
                    ) from error
                skipped.append((picture, str(error)))
                if len(skipped) <= SHOWN:
                    line.say(f"Left out: {error}")
            line.advance()
    if skipped and len(skipped) == len(pictures):
        raise KirieError("Not one picture could be converted; nothing was written.")
    return skipped, turned


def _write_one(writer: Writer, picture: _Picture, fixes: list[Fix] | None, *, link: bool) -> bool:
    """Writes one picture with its truth; whether it carries an EXIF rotation."""
    file = picture.dataset.file_facts(picture.number).get("image")
    done: list[Fix] = []
    if fixes is None:
        sample = picture.dataset[picture.number]
    else:
        sample, done = mended(picture.dataset, picture.number, picture.split)
    entry = Entry(picture.name, Path(file).suffix if file else ".png", picture.split, sample.truth.size)
    try:
        writer.write(entry, sample.truth)
    except KirieError as error:
        raise KirieError(f"{sample.name}: {error}") from error
    place = writer.root / writer.picture_path(entry)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not file:
        if sample.image.shape[2] not in (1, 3):
            raise KirieError(f"{sample.name}: a PNG holds 1 or 3 channels, the picture has {sample.image.shape[2]}.")
        write_picture(place, Image.fromarray(sample.image.squeeze(2) if sample.image.shape[2] == 1 else sample.image))
    elif link:
        place.symlink_to(os.path.realpath(file))
    else:
        shutil.copyfile(file, place)
    if fixes is not None:
        fixes += done
    return file is not None and image_facts(file).orientation != 1


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` when the block ends well, and is removed otherwise.

    Raises:
        KirieError: when the system refuses to write.
    """
    try:
        # In a folder that is there, which may be a disk of its own; else beside.
        home = target if target.exists() else target.parent
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", suffix=".part", dir=home) as beside:
            fresh = Path(beside) / "data"
            fresh.mkdir()
            yield fresh
            if home != target:
                fresh.rename(target)
                return
            for child in sorted(fresh.iterdir()):
                child.rename(target / child.name)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise KirieError(f"Cannot write {target}: {error.strerror or error}{where}. Nothing is left of it.") from error
