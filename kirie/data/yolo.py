"""YOLO-seg: pictures in `images`, a text file of polygons for each in `labels`, and a `data.yaml` that says where.

The format as its users describe it: a line `class x1 y1 x2 y2 ...` for each object, with x and y as shares of the
picture's width and height; the label file of `images/train/a.jpg` is `labels/train/a.txt`, and a picture without one
holds no objects. The format knows neither crowds nor holes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie.classes import MAX_CLASSES, Classes
from kirie.data.fault import without_pixels
from kirie.data.folders import FolderDataset
from kirie.data.labels import LabelFormat
from kirie.data.layouts import FolderSettings, Gap, Layout, Pair, list_pictures
from kirie.data.objects import Objects
from kirie.data.splits import canonical
from kirie.errors import KirieError, counted
from kirie.masks import Crop, Masks
from kirie.reading.headers import IMAGE_SUFFIXES
from kirie.reading.strict_yaml import MAX_BYTES, read_yaml
from kirie.results import Instances

MAX_PATH = 4096  # characters, the most that file systems take
CONFIGS = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
BESIDE = {"classes.txt", "train.txt", "val.txt", "test.txt"}  # text files of tools that may lie among the label files
MARGIN = 0.01  # by which a coordinate may lie outside of the picture, from rounding
_MAX_LIST_BYTES = 2**26
_MAX_LABEL_BYTES = 2**24
_MAX_DEPTH = 32  # folders from the end of a path of another machine that are looked for here
_MOST_OTHERS = 100_000  # files and folders beyond the number of the pictures among which these are looked for
# What the file says at its outermost level, so that one that is broken elsewhere is recognised and its fault told.
_NAMES = re.compile(rb"^(names|nc)[ \t]*:", re.MULTILINE)
_PLACES = re.compile(rb"^(train|val|valid|validation|test)[ \t]*:(?!\s*\n\s+\w+:)", re.MULTILINE)


class YoloDataset(FolderDataset):
    """`images/train/*.jpg` with `labels/train/*.txt`, or `train/images` with `train/labels`, as `data.yaml` says.

    The path is the YAML file, the folder with a `data.yaml` or `dataset.yaml`, or a split's folder in it. A `path` in
    the file that is not on this machine is passed over for the file's own folder. Objects have the classes of `names`
    that `data.ignore` does not leave out by their numbers; with task "semantic" there is a background, and a later
    object covers an earlier one.
    """

    @staticmethod
    def recognises(path: str | Path, task: str | None = None, settings: FolderSettings | None = None) -> bool:
        """Whether there is a YAML file that names classes and says where the pictures of a split are."""
        config = _config(Path(path))
        if config is None:
            return False
        try:
            with config.open("rb") as file:
                text = file.read(MAX_BYTES)
        except OSError:
            return False
        return bool(_NAMES.search(text) and _PLACES.search(text))

    @staticmethod
    def find_layout(path: Path, settings: FolderSettings, task: str | None) -> Layout:
        """The pictures of the splits, each with the path at which its label file is or would be.

        Raises:
            KirieError: when the YAML file cannot be used, no picture is where it says, or a setting is of no use here.
        """
        settings.refuse("images", "masks", "suffix", "kind", format_name="YOLO")
        config = _config(path)
        if config is None:
            raise KirieError(
                f"{path} has no {' or '.join(CONFIGS[:2])}; expected YOLO with train, val and names in it."
            )
        values = _values(config)
        home = os.path.abspath(config.parent)
        bases = _bases(home, values.get("path"), str(config))
        entries = [(str(key), split) for key in values if (split := canonical(str(key))) and values[key]]
        pairs: list[Pair] = []
        strays: list[str] = []
        unfound: list[str] = []
        gaps: list[Gap] = []
        for key, split in entries:
            places = [place for entry in _texts(values[key], key, str(config)) if (place := _found(bases, entry))]
            try:
                pictures = [picture for place in places for picture in _pictures(place, bases, unfound)]
            except KirieError as error:
                raise KirieError(f"{config}, {key}: {error}") from None
            pairs += [_pair(picture, split, bases) for picture in pictures]
            strays += [stray for place in places for stray in _strays(place, pictures)]
            if not pictures:
                why = f"{config} has pictures of {split} at {values[key]!s:.120}, and there are none."
                mend = f"Correct that entry, or put them at {os.path.join(home, 'images', split)}."
                gaps.append(Gap(split, why, mend))
        if not pairs:
            raise KirieError(
                f"{config} leads to no pictures: {' '.join(gap.why for gap in gaps) or 'it names no split.'} They were "
                f"looked for below {' and '.join(bases)}. Give folders from there, as in train: images/train, or "
                "correct path."
            )
        if path.is_dir() and path.resolve() != config.parent.resolve():  # one split's folder
            pairs = [pair for pair in pairs if pair.image.startswith(os.path.abspath(path) + os.sep)]
        words = f"YOLO polygons, splits from {config.name}"
        missing = tuple(dict.fromkeys(unfound))
        return Layout(words, tuple(sorted(set(pairs))), "labels", tuple(sorted(set(strays))), missing, gaps=tuple(gaps))

    @staticmethod
    def find_format(path: Path, layout: Layout, settings: FolderSettings, task: str | None) -> LabelFormat:
        """The classes that the YAML file names.

        Raises:
            KirieError: when their names or numbers cannot be used, or there is no label file at all.
        """
        config = _config(path) or path
        ignored = settings.ignore or ()
        numbered = {n: name for n, name in enumerate(_names(_values(config), str(config))) if n not in ignored}
        names = tuple(numbered.values())
        if not names:
            raise KirieError(f"{config}: data.ignore leaves none of its classes: {list(ignored)}.")
        if settings.classes is not None:
            if len(settings.classes) != len(names):
                raise KirieError(f"data.classes names {len(settings.classes)} classes, but {config} has {len(names)}.")
            names = settings.classes
        if not any(os.path.isfile(pair.mask) for pair in layout.pairs):
            example = layout.pairs[0] if layout.pairs else Pair("", str(path), "", "")
            raise KirieError(
                f"{path} has {counted(len(layout.pairs), 'picture')} but no label file for any of them; expected that "
                f"of {example.image} at {example.mask}, with a line of class and x y pairs for each object."
            )
        try:
            classes = Classes(names, things=(True,) * len(names), ids=tuple(numbered))
            return LabelFormat("polygons", classes, dropped_ids=ignored)
        except KirieError as error:
            raise KirieError(f"{config}: {error}") from None

    @staticmethod
    def find_objects(pair: Pair, form: LabelFormat, size: tuple[int, int] | None) -> Objects:
        """The objects in a file of polygons, filled as COCO fills them; those that cover no pixel are left out.

        Raises:
            KirieError: when the file is no text or a line is no polygon of a known class; it names the line.
        """
        lines = list(_polygons(pair.mask, form)) if os.path.lexists(pair.mask) else []
        if size is None:
            return Objects(None)
        masks = Masks(size, tuple(_filled(f"{pair.mask}, line {line.number}", line.shares, size) for line in lines))
        labels = np.array([line.label for line in lines], np.int64)
        kept = np.flatnonzero(masks.areas())
        truth = Instances.from_masks(masks[kept], labels[kept], form.classes)
        if len(kept) == len(masks):
            return Objects(truth)
        bare = [f"line {line.number}" for line, area in zip(lines, masks.areas(), strict=True) if not area]
        return Objects(truth, (without_pixels(pair.mask, pair.mask, len(bare), bare),))


# The YAML file


def _config(path: Path) -> Path | None:
    """The YAML file of a data set: the path itself, or the one in it, or above the folder of one split."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    places = (path, path.resolve().parent) if canonical(path.resolve().name) else (path,)
    files = [place / name for place in places for name in CONFIGS]
    return next((file for file in files if file.is_file()), None)


def _values(config: Path) -> dict[Any, Any]:
    values = read_yaml(config, "description of a data set")
    if not isinstance(values, dict):
        raise KirieError(f"{config} must hold entries such as train, val and names, got {type(values).__name__}.")
    return values


def _texts(value: Any, key: str, config: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise KirieError(f"{config}: {key} must be a folder, a list of folders or a .txt list, got {value!r:.80}.")
    return [text.strip() for text in texts]


def _names(values: dict[Any, Any], config: str) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers, made up where the file only counts them.

    Raises:
        KirieError: when they are no names or their numbers not 0, 1, 2...
    """
    names, count = values.get("names"), values.get("nc")
    if names is not None and not isinstance(names, list | dict):
        raise KirieError(f"{config}: names must be a list or numbers with names, got {names!r:.80}.")
    if count is not None and (type(count) is not int or not 1 <= count <= MAX_CLASSES):
        raise KirieError(f"{config}: nc must be the number of classes, 1 to {MAX_CLASSES}, got {count!r:.80}.")
    if isinstance(names, dict):
        numbered = {int(key) if str(key).isdecimal() else key: name for key, name in names.items()}
        if set(numbered) != set(range(len(numbered))):
            raise KirieError(f"{config}: names must have the numbers 0 to {len(names) - 1}, got {list(names)!s:.80}.")
        names = [numbered[number] for number in range(len(numbered))]
    if not names:
        if count is None:
            raise KirieError(f"{config} names no classes; expected names: [first, second].")
        return tuple(f"class {number}" for number in range(count))
    wrong = [name for name in names if isinstance(name, bool) or not isinstance(name, str | int) or name == ""]
    if wrong:
        raise KirieError(f"{config}: names holds {wrong[0]!r:.60}, which YAML reads as no text; write it in quotes.")
    if count not in (None, len(names)):
        raise KirieError(f"{config}: nc is {count} but there are {len(names)} names; give as many.")
    return tuple(map(str, names))


# Where pictures and label files are


def _bases(home: str, stated: Any, config: str) -> list[str]:
    """The folders to look in: what the file calls `path`, where it is on this machine, and the file's own folder."""
    if stated is None:
        return [home]
    if not isinstance(stated, str) or "\0" in stated:
        raise KirieError(f"{config}: path must be a folder, got {stated!r:.80}.")
    place = os.path.abspath(os.path.join(home, stated.strip().replace("\\", "/")))
    return [place, home] if os.path.isdir(place) and place != home else [home]


def _found(bases: Sequence[str], entry: str) -> str | None:
    """The absolute path of the folder or file that an entry names; None where there is none.

    Exports of Roboflow write ../train/images for what lies beside the file, and absolute paths are often those of
    another machine: their last parts are then looked for below the data set's folder, which is the last of `bases`.
    """
    if len(entry) > MAX_PATH:
        return None
    for place in _candidates(bases, entry.replace("\\", "/")):
        if os.path.isdir(place) or os.path.isfile(place):
            return os.path.abspath(place)
    return None


def _candidates(bases: Sequence[str], entry: str) -> Iterator[str]:
    inside = entry
    while inside.startswith("../"):
        inside = inside[3:]
    if inside != entry:
        yield os.path.join(bases[-1], inside)
    yield from (os.path.join(base, entry) for base in bases)
    parts = [part for part in entry.split("/") if part not in ("", ".", "..")]
    for start in range(max(0 if entry.startswith("/") else 1, len(parts) - _MAX_DEPTH), len(parts) - 1):
        yield from (os.path.join(base, *parts[start:]) for base in bases)


def _pictures(place: str, bases: Sequence[str], unfound: list[str]) -> Iterator[str]:
    """The pictures in a folder, or those of a .txt list that are there; the others are added to `unfound`.

    Raises:
        KirieError: when a file is no such list, or a folder is of much else than pictures.
    """
    if os.path.isdir(place):
        yield from (os.path.join(place, name) for name in list_pictures(place, most_others=_MOST_OTHERS))
        return
    if not place.lower().endswith(".txt"):
        raise KirieError(f"{place} is a file; expected a folder of pictures, or a .txt list of them.")
    for line in _lines(place, _MAX_LIST_BYTES):
        found = _found([os.path.dirname(place), *bases], line.text)
        if found is not None and found.lower().endswith(IMAGE_SUFFIXES):
            yield found
        else:
            unfound.append(line.text[:MAX_PATH])


def _labels(place: str) -> str:
    """The path with its last `images` as `labels`; the path itself when it has none."""
    head, images, tail = f"{place}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    return os.path.join(head, "labels", tail).rstrip(os.sep) if images else place


def _text_of(picture: str) -> str:
    return f"{os.path.splitext(picture)[0]}.txt"


def _pair(picture: str, split: str, bases: Sequence[str]) -> Pair:
    mask, beside = _text_of(_labels(picture)), _text_of(picture)
    if not os.path.isfile(mask) and os.path.isfile(beside):
        mask = beside
    base = next((base for base in reversed(bases) if picture.startswith(f"{base}{os.sep}")), "")
    name = os.path.splitdrive(picture)[1] if not base else picture[len(base) :]
    return Pair(name.replace(os.sep, "/").lstrip("/"), picture, mask, split)


def _strays(place: str, pictures: Iterable[str]) -> Iterator[str]:
    """The label files of a folder of pictures that belong to none of them."""
    folder, used = _labels(place), {_text_of(_labels(picture)) for picture in pictures}
    if folder != place and os.path.isdir(place):
        for below, _, files in os.walk(folder):
            texts = (os.path.join(below, file) for file in files if file.endswith(".txt") and file not in BESIDE)
            yield from (text for text in texts if text not in used)


# Label files


class _Line(NamedTuple):
    number: int
    text: str


class _Polygon(NamedTuple):
    """A polygon with the number of its line; `shares` (P, 2) are x and y as shares of width and height."""

    number: int
    label: int
    shares: npt.NDArray[np.float64]


def _lines(path: str | Path, most: int) -> Iterator[_Line]:
    """The lines of a text file that hold anything, with their numbers from 1.

    Raises:
        KirieError: when the file cannot be read, is too long or no text.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise KirieError(f"Cannot read {path}: {error.strerror or error}.") from error
    if len(data) > most:
        raise KirieError(f"{path} has more than {most:,} bytes; is it a text file of YOLO?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise KirieError(f"{path} is no UTF-8 text; expected lines of text as YOLO has them.")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _Line(number, line.strip())


def _polygons(path: str, form: LabelFormat) -> Iterator[_Polygon]:
    """The polygons in a label file, without those of classes that are to be ignored.

    Raises:
        KirieError: on what is no polygon of a class, naming the line.
    """
    label_of = {number: label for label, number in enumerate(form.classes.ids)}
    for number, text in _lines(path, _MAX_LABEL_BYTES):
        where, words = f"{path}, line {number}", text.split()
        try:
            values = np.array([float(word) for word in words])
        except ValueError:
            raise KirieError(f"{where} is {text[:60]!r}; expected numbers: a class and x y pairs.") from None
        if len(values) == 5:
            raise KirieError(
                f"{where} is a box (class, centre, width, height), not a polygon: these labels are for detection. "
                "Export the data for segmentation, with a polygon for each object."
            )
        if len(values) < 7 or len(values) % 2 == 0:
            raise KirieError(
                f"{where} has {counted(len(values), 'number')}; expected a class and at least three x y pairs, an odd "
                "count."
            )
        if not np.isfinite(values).all():
            raise KirieError(f"{where} holds a number that is not finite; expected shares of the picture in 0..1.")
        stated, shares = values[0].item(), values[1:].reshape(-1, 2)
        if stated in form.dropped_ids:
            continue
        label = label_of.get(stated)
        if label is None:
            raise KirieError(
                f"{where} has the class {words[0][:20]}; expected a number of `names` in the YAML file, the last of "
                f"which is {max(label_of)}. Add its name there, or leave it out with data.ignore."
            )
        low, high = shares.min(), shares.max()
        if low < -MARGIN or high > 1 + MARGIN:
            raise KirieError(
                f"{where} has coordinates from {low:g} to {high:g}; expected shares of the picture's width and height "
                "in 0..1. Pixels are to be divided by its width and height."
            )
        yield _Polygon(number, label, shares)


def _filled(where: str, shares: npt.NDArray[np.float64], size: tuple[int, int]) -> Crop | bytes:
    """One polygon as a mask of a picture of `size` (H, W)."""
    ring = (shares * (size[1], size[0])).ravel().tolist()
    try:
        return Masks.from_polygons([[ring]], size).items[0]
    except KirieError as error:
        raise KirieError(f"{where}: {error}") from None
