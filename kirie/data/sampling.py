"""Which pictures an epoch draws, and what their patches must contain: more of what is rare, small or hard.

Everything is drawn from the generator of the epoch, so that it is the same for every process and on every run. What
is known of the data (`class_counts`) is counted once; what is known of the training (the running losses) changes
between epochs alone, so that an epoch that is resumed is the one that was begun.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.data.dataset import Dataset
from kirie.errors import KirieError
from kirie.files import whole_file
from kirie.progress import tracked
from kirie.results import Instances, PanopticMap, Result, SemanticMap

ANYWHERE, FOREGROUND = -2, -1  # what a patch must contain, beside the number of a class
MEMORY = 0.5  # of a running loss, the share that an epoch leaves

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SamplingSettings:
    """How an epoch differs from one that draws each picture alike and takes its patches anywhere.

    Attributes:
        positive_ratio: share of the patches that contain foreground: any class but background, an object, a thing.
            nnU-Net (Isensee et al. 2021) takes a third.
        rare_ratio: share of the patches placed on a class that is drawn by its rarity, the inverse root of its share
            of all pixels (or objects), in a picture that has it.
        repeat_threshold: t of LVIS's repeat factors (Gupta et al. 2019): a picture is drawn max(1, sqrt(t / f)) times
            as often, f being the share of pictures that have its rarest class; 0 for none.
        hard_ratio: share of the pictures drawn by their running loss.
    """

    positive_ratio: float = 0.0
    rare_ratio: float = 0.0
    repeat_threshold: float = 0.0
    hard_ratio: float = 0.0

    @property
    def places_patches(self) -> bool:
        """Whether any patch must contain something."""
        return self.positive_ratio > 0 or self.rare_ratio > 0

    @property
    def needs_counts(self) -> bool:
        """Whether what is in the pictures must be known."""
        return self.places_patches or self.repeat_threshold > 0


@dataclass(eq=False)
class Sampling:
    """The draws of an epoch by `SamplingSettings`.

    Attributes:
        settings: the shares.
        counts: (N, K), of each class in each of N pictures; see `class_counts`. N x 0 where they are not needed.
        foreground: the classes that `positive_ratio` means.
        losses: (N,) running mean loss of each picture; NaN before its first.
        sums: (N,) of its losses in the epoch under way.
        seen: (N,) how many these are.

    Raises:
        KirieError: when patches must contain what no picture has.
    """

    settings: SamplingSettings
    counts: Counts
    foreground: tuple[int, ...] = ()
    losses: npt.NDArray[np.float64] = field(init=False)
    sums: npt.NDArray[np.float64] = field(init=False)
    seen: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        pictures = len(self.counts)
        self.losses = np.full(pictures, np.nan)
        self.sums, self.seen = np.zeros(pictures), np.zeros(pictures)
        if self.settings.places_patches and not self._has(self.foreground).any():
            raise KirieError(
                "sampling.positive_ratio and sampling.rare_ratio place patches on foreground, but no picture has any: "
                "leave them out, or look at the labels with `kirie inspect`."
            )

    def _has(self, classes: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Which pictures (N,) have any of these classes."""
        return np.asarray((self.counts[:, list(classes)] > 0).any(1))

    def order(self, draws: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
        """The pictures of an epoch of so many draws, and what their patches must contain, in order.

        `hard_ratio` of the places get other pictures by their losses. `positive_ratio` and `rare_ratio` of the places,
        which are chosen independently of that, keep their picture where it has what they need, and get another if not.
        """
        settings = self.settings
        pictures = self._repeated(draws, rng)
        focus = np.full(draws, ANYWHERE)
        hard = rng.permutation(draws)[: round(settings.hard_ratio * draws)]
        if len(hard) and np.isfinite(self.losses).any():
            weights = np.where(np.isfinite(self.losses), self.losses, np.nanmean(self.losses)).clip(0)
            if weights.sum() > 0:
                pictures[hard] = rng.choice(len(weights), len(hard), p=weights / weights.sum())
        if settings.places_patches:
            places = rng.permutation(draws)
            positive = round(settings.positive_ratio * draws)
            rare = min(round(settings.rare_ratio * draws), draws - positive)
            self._focus(pictures, focus, places[:positive], self.foreground, FOREGROUND, rng)
            chosen = places[positive : positive + rare]
            drawn = rng.choice(self.foreground, len(chosen), p=self._rarity())
            for label in np.unique(drawn).tolist():
                self._focus(pictures, focus, chosen[drawn == label], (label,), label, rng)
        return zip(pictures.tolist(), focus.tolist(), strict=True)

    def _focus(
        self,
        pictures: npt.NDArray[np.int64],
        focus: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
        classes: tuple[int, ...],
        meant: int,
        rng: np.random.Generator,
    ) -> None:
        """Sets the focus at some places, and another picture at those whose picture has none of the classes."""
        has = self._has(classes)
        focus[places] = meant
        without = places[~has[pictures[places]]]
        pictures[without] = rng.choice(np.flatnonzero(has), len(without))

    def _rarity(self) -> npt.NDArray[np.float64]:
        """The chance of each foreground class; none for one that does not occur."""
        total = self.counts[:, list(self.foreground)].sum(0)
        weights = np.where(total > 0, 1 / np.sqrt(np.maximum(total, 1)), 0.0)
        return np.asarray(weights / weights.sum())

    def _repeated(self, draws: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """The pictures of so many draws, each about as often as its repeat factor says, shuffled."""
        factors = repeat_factors(self.counts, self.settings.repeat_threshold)
        whole = np.floor(factors).astype(int)
        out: list[npt.NDArray[np.int64]] = []
        while sum(map(len, out)) < draws:
            times = whole + (rng.random(len(factors)) < factors - whole)
            out.append(rng.permutation(np.repeat(np.arange(len(factors)), times)))
        return np.concatenate(out)[:draws]

    def note(self, samples: tuple[int, ...], loss: float) -> None:
        """Takes down the loss of a batch, for each of its pictures."""
        np.add.at(self.sums, list(samples), loss)
        np.add.at(self.seen, list(samples), 1.0)

    def close_epoch(self) -> None:
        """Lets the running losses follow what was taken down."""
        new = self.seen > 0
        mean = self.sums[new] / self.seen[new]
        before = np.where(np.isfinite(self.losses[new]), self.losses[new], mean)
        self.losses[new] = MEMORY * before + (1 - MEMORY) * mean
        self.sums[:], self.seen[:] = 0, 0

    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """What a training needs to go on, by name; these very arrays."""
        return {"losses": self.losses, "sums": self.sums, "seen": self.seen}

    def restore(self, state: Mapping[str, npt.NDArray[np.float64]]) -> None:
        """Takes over what `state` gave.

        Raises:
            KeyError: when something is missing.
            ValueError: when it is of another number of pictures.
        """
        for name, own in self.state().items():
            own[:] = state[name]


def repeat_factors(counts: Counts, threshold: float) -> npt.NDArray[np.float64]:
    """How many times each picture is repeated, (N,) from 1: LVIS's factors (Gupta et al. 2019, appendix B.1).

    Args:
        counts: (N, K) of each class in each picture.
        threshold: t, a share of the pictures; classes in fewer of them are rare.
    """
    there = counts > 0
    share = there.mean(0) if len(counts) else np.zeros(counts.shape[1])
    factor = np.maximum(1.0, np.sqrt(threshold / np.where(share > 0, share, 1.0)))  # (K,)
    return np.asarray(np.where(there, factor, 1.0).max(1, initial=1.0))


def foreground_of(dataset: Dataset) -> tuple[int, ...]:
    """The classes that patches are placed on: objects, things, or all but the background."""
    classes = dataset.classes
    if dataset.task == "panoptic":
        return tuple(label for label, thing in enumerate(classes.things) if thing)
    return tuple(range(int(dataset.task == "semantic" and classes.has_background), len(classes)))


def class_counts(dataset: Dataset) -> Counts:
    """How many pixels of each class each picture has (objects, of a data set of these), (N, K); counted once.

    What was counted lies in a cache folder (`KIRIE_CACHE`, else `~/.cache/kirie`) and is taken from there as long as
    the files of the data set are as they were; without files, or where it cannot be written, it is counted anew.
    """
    cache = _cache_file(dataset)
    shape = (len(dataset), len(dataset.classes))
    if cache is not None:
        try:
            known = np.load(cache, allow_pickle=False)
            if known.shape == shape and known.dtype == np.int64:
                return np.asarray(known)
        except (OSError, ValueError, EOFError):
            pass  # not there, or damaged
    counts = np.zeros(shape, np.int64)
    for row, index in zip(counts, tracked(range(len(dataset)), "counting classes", len(dataset)), strict=True):
        row[:] = _counted(dataset[index].truth)
    if cache is not None:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(cache) as stand_in, open(stand_in, "wb") as file:
                np.save(file, counts, allow_pickle=False)
        except (OSError, KirieError):
            pass  # it only saves time
    return counts


def _counted(truth: Result) -> Counts:
    """Of each class its pixels in a map, its objects among instances."""
    count = len(truth.classes)
    if isinstance(truth, SemanticMap):
        return np.bincount(truth.labels.ravel(), minlength=count)[:count]
    if isinstance(truth, PanopticMap):
        found = np.zeros(count, np.int64)
        for segment in truth.segments:
            found[segment.label] += 0 if segment.crowd else segment.area
        return found
    return np.bincount(truth.labels[~truth.crowd], minlength=count)


def _cache_file(dataset: Dataset) -> Path | None:
    """Where the counts of a data set lie: named by its files as they are now, so that others are not taken for them."""
    digest = hashlib.sha256()
    facts = [dataset.task, dataset.classes.to_dict(), repr(getattr(dataset, "settings", None))]
    digest.update(json.dumps(facts).encode())
    for index in range(len(dataset)):
        files = {role: value for role, value in dataset.file_facts(index).items() if isinstance(value, str)}
        if not files:
            return None
        for role, name in sorted(files.items()):
            digest.update(f"{role} {os.path.abspath(name)} {_stamp(name)}\n".encode("utf-8", "surrogateescape"))
    base = Path(os.environ.get("KIRIE_CACHE") or Path.home() / ".cache" / "kirie")
    return base / f"class-counts-{digest.hexdigest()[:32]}.npy"


def _stamp(name: str) -> str:
    """What changes when a file does, or one in a folder."""
    try:
        facts = os.stat(name)
        if stat.S_ISDIR(facts.st_mode):
            return " ".join(
                f"{each.name} {_stamp(each.path)}" for each in sorted(os.scandir(name), key=lambda e: e.name)
            )
    except OSError:
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def find_anchor(truth: Result, focus: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """A pixel (y, x) of what a patch must contain, drawn alike from all of these (of objects, from all objects first).

    Args:
        truth: of the picture.
        focus: `FOREGROUND`, or the number of a class.
        rng: source of chance.

    Returns:
        None where the truth has nothing of it.
    """
    if isinstance(truth, Instances):
        return _in_objects(truth, focus, rng)
    if isinstance(truth, SemanticMap):
        labels: Any = truth.labels
        wanted = labels == focus if focus >= 0 else (labels != 0) & (labels != truth.classes.void)
    else:
        ids = [s.id for s in truth.segments if (s.label == focus if focus >= 0 else s.is_thing) and not s.crowd]
        wanted = truth.ids == rng.choice(ids) if ids else np.zeros(truth.size, bool)
    return _drawn(np.flatnonzero(wanted), truth.size[1], (0, 0), rng)


def _in_objects(truth: Instances, focus: int, rng: np.random.Generator) -> tuple[int, int] | None:
    wanted = ~truth.crowd if focus < 0 else ~truth.crowd & (truth.labels == focus)
    rows = np.flatnonzero(wanted & (truth.masks.areas() > 0))
    if not len(rows):
        return None
    crop = truth.masks[[rng.choice(rows)]].crops()[0]
    return _drawn(np.flatnonzero(crop.bits), crop.bits.shape[1], (crop.top, crop.left), rng)


def _drawn(
    flat: npt.NDArray[np.intp], width: int, corner: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int] | None:
    if not len(flat):
        return None
    y, x = divmod(int(rng.choice(flat)), width)
    return corner[0] + y, corner[1] + x
