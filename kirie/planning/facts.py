"""What of a data set decides how to train on it, measured on a sample of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.data.dataset import Dataset, Sample
from kirie.errors import KirieError
from kirie.progress import tracked
from kirie.results import Instances, PanopticMap, SemanticMap, id_map, to_instances, to_semantic

LOOKED_AT = 64  # pictures of the training split, evenly chosen
PATCH = 256  # pixels, of the patches that are looked into
PATCHES = 8  # of each picture
CHANCE = 1.5  # standard deviations of a sum over pictures, within which halves differ by chance
COLOUR = 8  # levels between the channels of a pixel that has a colour


@dataclass(frozen=True)
class DataFacts:
    """What the rules of a plan are about.

    Attributes:
        pictures: in the training split.
        measured: in the validation split.
        height: H of the middle picture, and so `width`.
        width: W of the middle picture.
        grey: whether all three channels are the same in nearly every picture.
        names: the K classes of pixels, background included.
        shares: (K,) of all pixels that are not void.
        foreground: share of the pixels that are an object, a thing or any class but background.
        empty_patches: share of random patches of 256 x 256 pixels that hold none of it.
        upright: how much the foreground differs between the upper and the lower halves of the pictures, from 0
            (pictures without up and down) to 1 (each class lies in one half alone): the sum over its classes of the
            difference in pixels, by all of its pixels. A class that lies above here and below there counts as even.
        brightness: the mean grey level of the darkest and the brightest picture (5 % and 95 %).
        objects: of the middle and of the fullest picture; None where labels do not tell objects apart.
        diameters: root of the area of the objects: 5 %, the middle, 95 %; None likewise.
        touching: share of the objects that touch another one; None likewise.
        rare_pictures: pictures with the class of objects that the fewest have, and with the one that the most have.
        read: pictures that were looked at.
    """

    pictures: int
    measured: int
    height: int
    width: int
    grey: bool
    names: tuple[str, ...]
    shares: tuple[float, ...]
    foreground: float
    empty_patches: float
    upright: float
    brightness: tuple[float, float]
    objects: tuple[int, int] | None
    diameters: tuple[float, float, float] | None
    touching: float | None
    rare_pictures: tuple[int, int] | None
    read: int

    @property
    def rarest(self) -> tuple[str, float]:
        """The foreground class with the fewest pixels that has any, and its share of all pixels."""
        first = int(self.names[0] == "background")
        there = [(share, name) for name, share in zip(self.names[first:], self.shares[first:], strict=True) if share]
        share, name = min(there, default=(0.0, self.names[-1]))
        return name, share


def data_facts(dataset: Dataset, measured: int) -> DataFacts:
    """Looks at up to `LOOKED_AT` pictures of a training split.

    Args:
        dataset: the split, with the truth that its labels serve, objects where they tell them apart.
        measured: pictures in the validation split.

    Raises:
        KirieError: when none of them can be read.
    """
    count = len(dataset)
    tally = _Tally()
    chosen = np.unique(np.linspace(0, count - 1, min(LOOKED_AT, count)).round().astype(int)).tolist()
    fault: KirieError | None = None
    for index in tracked(chosen, "looking at the pictures", len(chosen)):
        try:
            tally.add(dataset[index])
        except KirieError as error:  # inspecting tells of each; a plan needs only most of them
            fault = error
    if not tally.sizes:
        raise fault or KirieError("There are no pictures to plan for.")
    return tally.facts(count, measured)


@dataclass
class _Tally:
    """What was seen so far."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    colour: int = 0
    means: list[float] = field(default_factory=list)
    halves: list[npt.NDArray[np.int64]] = field(default_factory=list)  # (2, K) pixels above and below
    empty: list[bool] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    areas: list[npt.NDArray[np.int64]] = field(default_factory=list)
    touching: int = 0
    holders: list[npt.NDArray[np.bool_]] = field(default_factory=list)  # which classes of objects are there
    names: tuple[str, ...] = ()
    inner: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    has_objects: bool = False

    def add(self, sample: Sample) -> None:
        truth = sample.truth
        shown = to_semantic(truth)
        labels, classes, image = shown.labels, shown.classes, sample.image
        if not self.names:
            self.names, self.has_objects = classes.names, not isinstance(truth, SemanticMap)
            things = isinstance(truth, PanopticMap)
            self.inner = np.array([bool(t) for t in classes.things]) if things else np.ones(len(classes), bool)
            self.inner[0] &= not classes.has_background
        height, width = labels.shape
        self.sizes.append((height, width))
        self.colour += bool(image.shape[2] == 3 and (np.ptp(image, axis=2) > COLOUR).mean() > 0.01)
        grey: Any = image[..., :3].mean(axis=2)
        self.means.append(float(grey.mean()))
        known = labels != classes.void
        front = known & self.inner[np.minimum(labels, len(classes) - 1)]
        self.halves.append(
            np.stack([
                np.bincount(half[half != classes.void], minlength=len(classes))[: len(classes)]
                for half in (labels[: height // 2], labels[height // 2 :])
            ])
        )  # fmt: skip
        rng = np.random.default_rng(len(self.sizes))
        for _ in range(PATCHES):
            top, left = (int(rng.integers(0, max(side - PATCH, 0) + 1)) for side in (height, width))
            self.empty.append(not front[top : top + PATCH, left : left + PATCH].any())
        if self.has_objects:
            self._objects(truth)

    def _objects(self, truth: Any) -> None:
        found: Instances = to_instances(truth)
        found = found[~found.crowd]
        self.counts.append(len(found))
        self.areas.append(np.asarray(found.masks.areas(), np.int64))
        self.holders.append(np.bincount(found.labels, minlength=len(found.classes)) > 0)
        ids = id_map(found)
        near: set[int] = set()
        for here, there in ((ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])):
            meet = (here != there) & (here > 0) & (there > 0)
            near |= set(np.unique(here[meet]).tolist()) | set(np.unique(there[meet]).tolist())
        self.touching += len(near)

    def facts(self, pictures: int, measured: int) -> DataFacts:
        order = sorted(range(len(self.sizes)), key=lambda index: self.sizes[index][0] * self.sizes[index][1])
        height, width = self.sizes[order[len(order) // 2]]
        halves = np.array(self.halves)  # (pictures, 2, K)
        total = halves.sum((0, 1))
        areas = np.concatenate(self.areas) if self.areas else np.zeros(0, np.int64)
        inside = float(total[self.inner].sum() / max(total.sum(), 1))
        return DataFacts(
            pictures=pictures,
            measured=measured,
            height=height,
            width=width,
            grey=self.colour <= 0.05 * len(self.sizes),
            names=self.names,
            shares=tuple(float(share) for share in total / max(total.sum(), 1)),
            foreground=inside,
            empty_patches=float(np.mean(self.empty)),
            upright=_upright(halves[..., self.inner]),
            brightness=_ends(self.means),
            objects=(int(np.median(self.counts)), max(self.counts)) if self.counts else None,
            diameters=_three(np.sqrt(areas)) if len(areas) else None,
            touching=self.touching / len(areas) if len(areas) else None,
            rare_pictures=self._holders(),
            read=len(self.sizes),
        )

    def _holders(self) -> tuple[int, int] | None:
        if not self.holders:
            return None
        counts = np.sum(self.holders, axis=0)
        there = counts[counts > 0]
        return (int(there.min()), int(there.max())) if len(there) else None


def _upright(halves: npt.NDArray[np.int64]) -> float:
    """See `DataFacts.upright`; of the pixels (pictures, 2, K) of the classes above and below."""
    differ = halves[:, 0].astype(np.float64) - halves[:, 1]
    total = np.abs(differ.sum(0))
    told = total > CHANCE * np.sqrt((differ**2).sum(0))
    return float(total[told].sum() / max(halves.sum(), 1))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(values), [0.05, 0.95])
    return float(low), float(high)


def _three(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return float(low), float(middle), float(high)
