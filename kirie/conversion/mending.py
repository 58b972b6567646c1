"""What of a data set's faults can be mended in a copy without asking."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kirie.data.dataset import Dataset, Sample
from kirie.data.folders import FolderDataset
from kirie.data.inspect import TINY, doubled_objects
from kirie.data.labels import read_labels
from kirie.data.lookalikes import WAYS, Lookalikes
from kirie.errors import KirieError, counted
from kirie.files import write_text
from kirie.progress import tracked
from kirie.reading.images import read_image
from kirie.results import Instances

FIXES = "fixes.csv"
RANK = {"train": 0, "val": 1, "test": 2}  # a picture in two splits stays in the later one


class Fix(NamedTuple):
    """Something that was mended.

    Attributes:
        picture: its name in the source.
        split: its split there.
        fix: what was done, in the words that equal fixes share.
        detail: of this one.
    """

    picture: str
    split: str
    fix: str
    detail: str


class Leak(NamedTuple):
    """A picture that another split has too.

    Attributes:
        place: which of those given.
        fix: what to tell of it.
    """

    place: int
    fix: Fix


def leaks(pictures: Sequence[tuple[Dataset, int, str]], *, channels: int = 3) -> list[Leak]:
    """The pictures that another split has too, the same or one that looks like it: those to be left out.

    Args:
        pictures: data set, number in it, and split of each; '' for none, which is compared with nothing.
        channels: that the pictures are read with.
    """
    files = [_file(dataset, number) for dataset, number, _ in pictures]
    found: dict[int, Leak] = {}

    def note(first: int, second: int, how: str) -> None:
        out, stays = sorted((first, second), key=lambda place: RANK[pictures[place][2]])
        dataset, number, split = pictures[out]
        twin, twin_number, twin_split = pictures[stays]
        detail = f"like {twin.name(twin_number)} in {twin_split}: {how}"
        found.setdefault(out, Leak(out, Fix(dataset.name(number), split, "left out: another split has it", detail)))

    for first, second in _same_bytes(files, [split for _, _, split in pictures]):
        note(first, second, "the same file")
    seen = Lookalikes()
    places: list[int] = []
    for place, (_, _, split) in enumerate(tracked(pictures, "comparing pictures", len(pictures))):
        try:
            before = len(seen.files)
            seen.add(files[place], split, read_image(files[place], channels))
        except KirieError:
            continue  # writing tells of it
        places += [place] * (len(seen.files) - before)
    for one, other, way, share in seen.pairs():
        note(places[one], places[other], (f"{WAYS[way]}, " if way else "") + f"correlation {share:.3f}")
    return [found[place] for place in sorted(found)]


def _same_bytes(files: Sequence[str], splits: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Two places in different splits whose files are equal, however plain the pictures."""
    by_size: dict[int, list[int]] = {}
    for place, (file, split) in enumerate(zip(files, splits, strict=True)):
        if split and os.path.isfile(file):
            by_size.setdefault(os.path.getsize(file), []).append(place)
    for alike in by_size.values():
        if len({splits[place] for place in alike}) < 2:
            continue
        firsts: dict[bytes, list[int]] = {}
        for place in alike:
            with open(files[place], "rb") as opened:
                firsts.setdefault(hashlib.file_digest(opened, "sha256").digest(), []).append(place)
        for equal in firsts.values():
            yield from (pair for pair in combinations(equal, 2) if splits[pair[0]] != splits[pair[1]])


def mended(dataset: Dataset, number: int, split: str) -> tuple[Sample, list[Fix]]:
    """A sample with what can be mended in its truth, and what that was.

    Ids and colours that are no class become void; objects stated twice are taken out, and so are those of fewer than
    `TINY` pixels where the middle one of the picture has ten times as many, since these are stray pixels.

    Raises:
        KirieError: when the picture cannot be used at all.
    """
    fixes: list[Fix] = []
    name = dataset.name(number)
    try:
        sample = dataset[number]
    except KirieError:
        if not isinstance(dataset, FolderDataset) or dataset.form.has_instances or dataset.form.segments:
            raise
        sample = dataset.with_unknown_as_void()[number]
        _, unknown = read_labels(str(dataset.file_facts(number)["mask"]), dataset.form)
        detail = ", ".join(f"{key}: {counted(count, 'pixel')}" for key, count in sorted(unknown.items()))
        fixes.append(Fix(name, split, "unknown ids made void", detail))
    truth: Any = sample.truth
    if isinstance(truth, Instances):
        areas = truth.masks.areas()
        least = min(TINY, float(np.median(areas[~truth.crowd])) / 10) if (~truth.crowd).any() else 0.0
        tiny = np.asarray(~truth.crowd & (areas < least))
        twice = doubled_objects(truth) & ~tiny
        for gone, words in ((tiny, "stray pixels taken out"), (twice, "objects stated twice taken out")):
            if gone.any():
                fixes.append(Fix(name, split, words, counted(int(gone.sum()), "object")))
        if (tiny | twice).any():
            sample = Sample(sample.image, truth[~(tiny | twice)], sample.name)
    return sample, fixes


def write_fixes(folder: Path, fixes: Sequence[Fix]) -> None:
    """Writes `fixes.csv`, a row for each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Fix._fields)
    writer.writerows(fixes)
    # A file name that is no Unicode is written by the numbers of its bytes.
    write_text(folder / FIXES, text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8"))


def _file(dataset: Dataset, number: int) -> str:
    return str(dataset.file_facts(number).get("image", ""))
