"""What of a data set's faults can be mended in a copy without asking."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
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
RANK = {"train": 0, "": 0, "val": 1, "test": 2}  # a picture in two splits stays in the later one


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
    """A picture that another split has too: which of those given, and what to tell of it."""

    place: int
    fix: Fix


def leaks(pictures: Sequence[tuple[Dataset, int, str]]) -> list[Leak]:
    """The pictures that another split has too, the same or one that looks like it: those to be left out.

    Args:
        pictures: data set, number in it, and split of each.
    """
    seen, files = Lookalikes(), [_file(dataset, number) for dataset, number, _ in pictures]
    places: list[int] = []
    for place, (_, _, split) in enumerate(tracked(pictures, "comparing pictures", len(pictures))):
        try:
            before = len(seen.files)
            seen.add(files[place], split, read_image(files[place], 3))
        except KirieError:
            continue  # writing tells of it
        places += [place] * (len(seen.files) - before)
    found: dict[int, Leak] = {}
    for first, second, way, share in seen.pairs():
        out, stays = sorted((places[first], places[second]), key=lambda place: RANK[pictures[place][2]])
        dataset, number, split = pictures[out]
        twin, twin_number, twin_split = pictures[stays]
        how = f"{WAYS[way]}, " if way else ""
        detail = f"like {twin.name(twin_number)} in {twin_split}: {how}correlation {share:.3f}"
        found.setdefault(out, Leak(out, Fix(dataset.name(number), split, "left out: another split has it", detail)))
    return list(found.values())


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
    write_text(folder / FIXES, text.getvalue())


def _file(dataset: Dataset, number: int) -> str:
    return str(dataset.file_facts(number).get("image", ""))
