"""The result of a picture that is larger than memory: rows that are done, kept in a folder and read again in parts.

The folder belongs to one prediction of one picture, which goes on with it when it was broken off. A row is complete or
not there, and what is held between two rows replaces what was held before in one step.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kirie.boxes import of_mask
from kirie.classes import Classes
from kirie.cleanup import CleanupSettings, RegionRules, clean
from kirie.counting import occurrences
from kirie.errors import KirieError, WriteError
from kirie.files import whole_file, write_text
from kirie.masks import Crop, Masks
from kirie.prediction.sweep import Done
from kirie.results import Instances, SemanticMap

JOB, STATE = "job.json", "state.npz"
BAND = 256  # rows that results are read at a time
MOST_MARGIN = 4096  # rows beside a band that the clean-up looks at
# What reading a file raises that a power cut left empty or in part, or that somebody else wrote.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
Arrays = Mapping[str, npt.NDArray[Any]]


class Unread(NamedTuple):
    """Windows that could not be read.

    Attributes:
        windows: how many.
        first: what was wrong with the first one.
    """

    windows: int
    first: str


class Stuff(NamedTuple):
    """A class of stuff in all of a picture: how many pixels, and the box (left, top, right, bottom) round them."""

    area: int
    box: tuple[int, int, int, int]


class RowStore:
    """The folder of one prediction; see above.

    Args:
        folder: made when missing.
        job: what decides on the rows, plain JSON; what another job left is removed.
        anew: whether what the same job left is removed too.

    Attributes:
        folder: as above.
        begin: the first row that is not done.

    Raises:
        KirieError: when the system refuses to write.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any], *, anew: bool = False) -> None:
        self.folder = folder
        if anew or earlier_job(folder) != job:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(folder / JOB, json.dumps(job))
        state = self.state()
        self.begin = 0 if state is None else int(state["row"]) + 1

    def state(self) -> Arrays | None:
        """What was held after the last row that is done; None before the first, or where it cannot be read."""
        try:
            with np.load(self.folder / STATE) as file:
                held = dict(file)
            return held if all(self.row_file(row).stat().st_size for row in range(int(held["row"]) + 1)) else None
        except _DAMAGED:
            return None

    def add(self, done: Done, state: Arrays, size: tuple[int, int]) -> None:
        """Keeps a row, then what is held after it.

        Raises:
            KirieError: when the system refuses to write; the row is not done then.
        """
        arrays: dict[str, Any] = {"unread": np.array(json.dumps(done.unread))}
        if done.map is not None:
            arrays |= {"top": np.array(done.map.top), "map": done.map.labels}
        if done.objects is not None:
            masks = Masks(size, done.objects.masks)
            arrays |= {
                "labels": done.objects.labels,
                "scores": done.objects.scores,
                "lengths": np.array([len(mask) for mask in done.objects.masks], np.int64),
                "run_lengths": np.frombuffer(b"".join(done.objects.masks), np.uint8),
                "boxes": masks.boxes(),
                "areas": masks.areas(),
            }
        with whole_file(self.row_file(done.row)) as stand_in:
            np.savez_compressed(stand_in, **arrays)
        held: dict[str, Any] = {"row": np.array(done.row), **state}
        with whole_file(self.folder / STATE) as stand_in:
            np.savez(stand_in, **held)
        self.begin = done.row + 1

    def row_file(self, row: int) -> Path:
        """Where a row is kept."""
        return self.folder / "rows" / f"{row:06d}.npz"

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def earlier_job(folder: Path) -> dict[str, Any]:
    """What decided on the rows in a folder; empty where there are none."""
    try:
        job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return job if isinstance(job, dict) else {}


@dataclass(frozen=True)
class LargeResult:
    """What a model sees in a picture of any size, read in parts.

    Attributes:
        store: the rows that are done, all of them.
        rows: how many there are.
        size: (H, W) of the picture.
        task: "semantic", "instance" or "panoptic".
        classes: of the result.
        cleanup: of a semantic map, done while it is read.
        stuff_area: see `MergeSettings`.
        chosen: of the classes those whose objects are wanted, in their order; None for all.
    """

    store: RowStore
    rows: int
    size: tuple[int, int]
    task: str
    classes: Classes
    cleanup: CleanupSettings | None = None
    stuff_area: int = 0
    chosen: tuple[int, ...] | None = None

    def unread(self) -> Unread | None:
        """The windows that could not be read, if any."""
        told = [words for row in range(self.rows) for words in json.loads(str(self._row(row, "unread")["unread"]))]
        return Unread(len(told), told[0]) if told else None

    def things(self) -> LargeResult:
        """The same with the objects of things alone, their classes numbered among them."""
        places = tuple(label for label, thing in enumerate(self.classes.things) if thing)
        if not places:
            raise KirieError("None of the classes is a thing, so there are no objects.")
        return replace(self, task="instance", classes=self.classes.subset(places), chosen=places)

    # ---- objects

    def parts(self) -> Iterator[Instances]:
        """The objects in the order of their numbers, some at a time."""
        for row in range(self.rows):
            yield self._objects(row)

    def _objects(self, row: int) -> Instances:
        arrays = self._row(row, "labels", "scores", "lengths", "run_lengths")
        packed, ends = arrays["run_lengths"].tobytes(), np.cumsum(arrays["lengths"]).tolist()
        masks = tuple(packed[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)) if ends else ()
        labels, scores = arrays["labels"], arrays["scores"]
        if self.chosen is not None:
            kept = np.isin(labels, self.chosen)
            masks = tuple(mask for mask, wanted in zip(masks, kept.tolist(), strict=True) if wanted)
            labels, scores = np.searchsorted(self.chosen, labels[kept]), scores[kept]
        return Instances.from_masks(Masks(self.size, masks), labels, self.classes, scores)

    @cached_property
    def index(self) -> Index:
        """What painting needs of all objects, a few numbers each."""
        return Index.of(self)

    # ---- maps

    def labels(self) -> Iterator[npt.NDArray[Any]]:
        """The classes of the pixels, `BAND` rows at a time: of the map, or of objects as `to_semantic` has them."""
        if self.task == "semantic":
            yield from self._cleaned()
            return
        panoptic = self.task == "panoptic"
        classes = self.classes if panoptic else self.classes.with_background()
        kind: Any = np.uint8 if classes.void == 255 else np.int32
        table = np.concatenate([[0], self.index.labels + len(classes) - len(self.classes)])
        stuff = np.full(classes.void + 1, classes.void, kind)
        for label in self.stuff if panoptic else ():
            stuff[label] = label
        for top, ids in zip(range(0, self.size[0], BAND), self.ids(), strict=True):
            labels = table[ids].astype(kind)
            yield np.where(ids > 0, labels, stuff[self.map(top, top + len(ids))]) if panoptic else labels

    @cached_property
    def stuff(self) -> dict[int, Stuff]:
        """The classes of stuff that a panoptic map shows, those of enough pixels."""
        found: dict[int, Stuff] = {}
        for top, ids in zip(range(0, self.size[0], BAND), self.ids(), strict=True):
            free = np.where(ids == 0, self.map(top, top + len(ids)), self.classes.void)
            counts = occurrences(free, self.classes.void + 1)[: len(self.classes)]
            for label in np.flatnonzero(counts).tolist():
                left, upper, right, lower = of_mask(free == label) or (0, 0, 0, 0)
                box = (left, top + upper, right, top + lower)
                before = found.get(label)
                if before is not None:
                    edges = zip(before.box, box, strict=True)
                    a, b, c, d = (min(pair) if place < 2 else max(pair) for place, pair in enumerate(edges))
                    box = (a, b, c, d)
                found[label] = Stuff(int(counts[label]) + (0 if before is None else before.area), box)
        return {label: each for label, each in sorted(found.items()) if each.area >= max(self.stuff_area, 1)}

    def ids(self) -> Iterator[npt.NDArray[np.int32]]:
        """The numbers of the objects, `BAND` rows at a time, as `id_map` has them; 0 where there is none."""
        for top in range(0, self.size[0], BAND):
            yield self.index.paint(top, min(top + BAND, self.size[0]))

    def map(self, top: int, bottom: int) -> npt.NDArray[Any]:
        """Rows of the map as it came out of the windows, (bottom - top, W)."""
        parts = []
        for row, (first, last) in enumerate(self._extents()):
            if first < bottom and top < last:
                parts.append(self._row(row, "map")["map"][max(top - first, 0) : bottom - first])
        return np.concatenate(parts)

    def _cleaned(self) -> Iterator[npt.NDArray[Any]]:
        height = self.size[0]
        rules = None if self.cleanup is None else replace(self.cleanup, threshold=None)  # which is done already
        room = 0 if rules is None else margin(rules)
        step = max(BAND, room // BAND * BAND)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            first = max(top - room, 0)
            labels = self.map(first, min(bottom + room, height))
            if rules is not None:
                labels = clean(SemanticMap(labels, self.classes), rules).labels
            labels = labels[top - first : bottom - first]
            yield from (labels[start : start + BAND] for start in range(0, bottom - top, BAND))

    def _extents(self) -> Sequence[tuple[int, int]]:
        """Where the map of each row begins and ends."""
        return _extents(self.store, self.rows, self.size[0])

    def _row(self, row: int, *names: str) -> Arrays:
        return _loaded(self.store, row, names)


class Index(NamedTuple):
    """Numbers of all objects of a large result, in their order.

    Attributes:
        result: which has their masks.
        row: (N,) in which their masks are kept.
        place: (N,) among the objects of that row.
        labels: (N,) classes.
        scores: (N,) float32.
        boxes: (N, 4) float32 xyxy.
        areas: (N,) pixels of the masks.
    """

    result: LargeResult
    row: npt.NDArray[Any]
    place: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    boxes: npt.NDArray[Any]
    areas: npt.NDArray[Any]

    @classmethod
    def of(cls, result: LargeResult) -> Index:
        """The numbers of a result's objects."""
        names = ("labels", "scores", "boxes", "areas")
        rows = [_loaded(result.store, row, names) for row in range(result.rows)]
        if result.chosen is not None:
            kept = [np.isin(each["labels"], result.chosen) for each in rows]
            rows = [{name: each[name][some] for name in names} for each, some in zip(rows, kept, strict=True)]
        counts = [len(each["labels"]) for each in rows]
        labels, scores, boxes, areas = (np.concatenate([each[name] for each in rows]) for name in names)
        if result.chosen is not None:
            labels = np.searchsorted(result.chosen, labels)
        place = np.concatenate([np.zeros(0, np.int64), *(np.arange(count) for count in counts)])
        return cls(result, np.repeat(np.arange(len(counts)), counts), place, labels, scores, boxes, areas)

    def paint(self, top: int, bottom: int) -> npt.NDArray[np.int32]:
        """The number of the topmost object of each pixel in some rows (h, W), by `stacking`; 0 where there is none."""
        out = np.zeros((bottom - top, self.result.size[1]), np.int32)
        here = np.flatnonzero((self.boxes[:, 1] < bottom) & (self.boxes[:, 3] > top) & (self.areas > 0))
        crops: dict[int, Crop] = {}
        for row in np.unique(self.row[here]).tolist():
            own = here[self.row[here] == row]
            masks = self.result._objects(row).masks[self.place[own]]
            crops |= dict(zip(own.tolist(), masks.between(top, bottom), strict=True))
        for number in here[np.lexsort((-self.areas[here], self.scores[here]))].tolist():
            upper, left, bits = crops[number]
            view = out[upper - top : upper - top + bits.shape[0], left : left + bits.shape[1]]
            view[bits] = number + 1
        return out


@lru_cache(maxsize=4)
def _loaded(store: RowStore, row: int, names: tuple[str, ...]) -> Arrays:
    try:
        with np.load(store.row_file(row)) as file:
            return {name: file[name] for name in names}
    except _DAMAGED as error:
        store.remove()
        raise WriteError(
            f"{store.row_file(row)} cannot be read again: {error}. Give the same command again; it begins anew with "
            "this picture."
        ) from error


@lru_cache(maxsize=4)
def _extents(store: RowStore, rows: int, height: int) -> tuple[tuple[int, int], ...]:
    tops = [int(_loaded(store, row, ("top",))["top"]) for row in range(rows)]
    return tuple(zip(tops, [*tops[1:], height], strict=True))


def margin(settings: CleanupSettings) -> int:
    """How many rows beside a band may change what the clean-up makes of it.

    Raises:
        KirieError: when all of the picture may.
    """
    most = 0
    for rules in (settings.rules, *settings.classes.values()):
        if rules.keep:
            raise KirieError(
                "The clean-up keeps the largest regions of the whole picture, which is too large for it: leave it out "
                "(--no-cleanup), or tune the model without `keep`."
            )
        most = max(most, _reach(rules))
    return min(most, MOST_MARGIN)


def _reach(rules: RegionRules) -> int:
    return 2 * (rules.opening + rules.closing) + rules.fill_holes + rules.smallest
