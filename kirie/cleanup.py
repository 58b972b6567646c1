"""Clean-up of semantic maps: thresholds, small regions, holes, rough edges; and the objects that touch, told apart.

All of it is done for a class at once: regions are numbered once, measured once, and what becomes of each is looked up
in one table, so that five thousand regions take as long as five.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.results import Instances, SemanticMap

Mask = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int32]

MOST_RADIUS = 256
GROWTH = 64  # pixels


@dataclass(frozen=True, kw_only=True)
class RegionRules:
    """What is done to the regions of a class, in this order. Regions touch along edges or at corners.

    Attributes:
        opening: radius in pixels of the disk that must fit into what stays; 0 leaves edges as they are.
        closing: radius of the disk that must fit into the gaps that stay.
        fill_holes: holes of at most so many pixels are filled; 0 leaves all.
        smallest: regions of fewer pixels go.
        keep: so many of the largest regions stay; 0 for all.
    """

    opening: int = 0
    closing: int = 0
    fill_holes: int = 0
    smallest: int = 0
    keep: int = 0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, most = getattr(self, entry.name), MOST_RADIUS if entry.name in ("opening", "closing") else 2**40
            if type(value) is not int or not 0 <= value <= most:
                raise KirieError(f"cleanup.{entry.name} is a whole number from 0 to {most:,}, got {value!r:.60}.")


@dataclass(frozen=True, kw_only=True)
class CleanupSettings:
    """What is done to a semantic map after the model; by default nothing.

    Attributes:
        threshold: where the probabilities of all foreground classes together reach it is foreground, of the likeliest
            class; None takes the likeliest class of all, which for two classes is a threshold of 0.5.
        rules: for every foreground class.
        classes: other rules for the classes of these names.
        cut: where a map is taken apart into objects (`objects`), parts of a region are two objects when a disk of this
            radius in pixels does not pass from one to the other; 0 cuts nothing.
        neck: likewise, when the neck between them is narrower than this share of the narrower part; 0 leaves necks.
    """

    threshold: float | None = None
    rules: RegionRules = field(default_factory=RegionRules)
    classes: Mapping[str, RegionRules] = field(default_factory=dict)
    cut: int = 0
    neck: float = 0.85

    def __post_init__(self) -> None:
        if self.threshold is not None and not (_number(self.threshold) and 0 < self.threshold < 1):
            raise KirieError(f"cleanup.threshold is a number between 0 and 1, got {self.threshold!r:.60}.")
        if type(self.cut) is not int or not 0 <= self.cut <= MOST_RADIUS:
            raise KirieError(f"cleanup.cut is a whole number from 0 to {MOST_RADIUS}, got {self.cut!r:.60}.")
        if not (_number(self.neck) and 0 <= self.neck < 1):
            raise KirieError(f"cleanup.neck is a number from 0 to below 1, got {self.neck!r:.60}.")

    def words(self) -> dict[str, Any]:
        """What differs from doing nothing, by name, for a person to read."""
        usual, told = CleanupSettings(), {}
        for name in ("threshold", "cut", "neck"):
            if getattr(self, name) != getattr(usual, name):
                told[name] = getattr(self, name)
        for prefix, rules in (("", self.rules), *((f"{name}: ", rules) for name, rules in self.classes.items())):
            told |= {f"{prefix}{name}": value for name, value in asdict(rules).items() if value}
        return told

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> CleanupSettings:
        """Settings from plain JSON values.

        Raises:
            KirieError: when an entry is unknown or has a wrong value.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping) or not set(values) <= known:
            raise KirieError(f"cleanup has the entries {', '.join(sorted(known))}, got {values!r:.120}.")
        given = dict(values)
        if "rules" in given:
            given["rules"] = _rules(given["rules"])
        if "classes" in given:
            if not isinstance(given["classes"], Mapping):
                raise KirieError(f"cleanup.classes has rules by the names of classes, got {given['classes']!r:.60}.")
            given["classes"] = {str(name): _rules(rules) for name, rules in given["classes"].items()}
        return cls(**given)


def _rules(values: Any) -> RegionRules:
    known = {f.name for f in fields(RegionRules)}
    if not isinstance(values, Mapping) or not set(values) <= known:
        raise KirieError(f"The rules of a clean-up have the entries {', '.join(sorted(known))}, got {values!r:.120}.")
    return RegionRules(**values)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def foreground(classes: Classes) -> tuple[int, ...]:
    """The classes that are cleaned and have objects: all but the background.

    Raises:
        KirieError: when there is no background, which is what takes the place of a region that goes.
    """
    if not classes.has_background:
        raise KirieError(
            "Only a map whose first class is called background can be cleaned or taken apart, and it has the classes "
            f"{', '.join(classes.names[:8])}."
        )
    return tuple(range(1, len(classes)))


def clean(result: SemanticMap, settings: CleanupSettings) -> SemanticMap:
    """A semantic map after its clean-up; scores stay as the model gave them.

    A region that goes becomes background, and only background is filled, so that no class takes pixels of another.

    Raises:
        KirieError: when the map has no background, a class of the settings is unknown, or there is a threshold and the
            map has no scores.
    """
    known = foreground(result.classes)
    unknown = sorted(set(settings.classes) - set(result.classes.names))
    if unknown:
        raise KirieError(
            f"cleanup.classes names {unknown[0]!r:.60}, which is none of {', '.join(result.classes.names)}."
        )
    labels = result.labels.copy() if settings.threshold is None else thresholded(result, settings.threshold)
    for label in known:
        rules = settings.classes.get(result.classes.names[label], settings.rules)
        if rules == RegionRules():
            continue
        before = labels == label
        after = cleaned(before, rules)
        labels[before & ~after] = 0
        labels[after & (labels == 0)] = label
    return SemanticMap(labels, result.classes, result.scores)


def thresholded(result: SemanticMap, threshold: float) -> npt.NDArray[Any]:
    """Labels (H, W): the likeliest foreground class where the foreground's probability reaches the threshold.

    Raises:
        KirieError: when the map has no scores.
    """
    if result.scores is None:
        raise KirieError("A threshold needs the probabilities, and this map was made without them: scores=True.")
    scores: Any = result.scores
    inside = 1 - scores[0] >= threshold
    return np.where(inside, scores[1:].argmax(0) + 1, 0).astype(result.labels.dtype)


def cleaned(mask: Mask, rules: RegionRules) -> Mask:
    """A mask (H, W) after its clean-up."""
    for radius, operation in ((rules.opening, cv2.MORPH_OPEN), (rules.closing, cv2.MORPH_CLOSE)):
        if radius:
            mask = _morphed(mask, radius, operation)
    if rules.fill_holes:
        mask = mask | _in_holes(mask, rules.fill_holes)
    if rules.smallest > 1 or rules.keep:
        _, ids, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
        areas[0] = 0  # of what is no region
        stays = areas >= max(rules.smallest, 1)
        if rules.keep and stays.sum() > rules.keep:
            smaller = np.argsort(-areas, kind="stable")[rules.keep :]
            stays[smaller] = False
        mask = stays[ids]
    return mask


def _morphed(mask: Mask, radius: int, operation: int) -> Mask:
    """Opening or closing by a disk, as scikit-image's `disk`; the picture goes on beyond its edges as it ends there."""
    reach = np.arange(-radius, radius + 1)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.uint8)
    room = np.pad(mask.view(np.uint8), 2 * radius, mode="edge")
    done: Any = cv2.morphologyEx(room, operation, disk)
    return np.asarray(done[2 * radius : -2 * radius, 2 * radius : -2 * radius], bool)


def _in_holes(mask: Mask, largest: int) -> Mask:
    """The pixels of holes: parts of the rest, connected along edges, that do not reach the picture's edge."""
    _, ids, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=4)
    fills = stats[:, cv2.CC_STAT_AREA] <= largest
    for edge in (ids[0], ids[-1], ids[:, 0], ids[:, -1]):
        fills[edge] = False
    fills[0] = False  # the mask itself
    return np.asarray(fills[ids])


def objects(result: SemanticMap, settings: CleanupSettings) -> Instances:
    """The objects of a map that is clean: the regions of each foreground class, taken apart where they touch.

    A region is first divided by `settings.cut`: what stays of it after an opening by so large a disk are its parts,
    which then grow back over the rest. These are divided by the watershed of the distances from their edge: each pixel
    belongs to the peak that the steepest way leads to (Vincent and Soille 1991), and basins stay apart while the neck
    between them is narrower than `settings.neck` of the narrower of both. So large objects may be as dented as small
    ones are.

    Returns:
        Objects by class and from top to bottom, with the mean probability of their class as scores, or 1 where the map
        has none. Their classes are those of the map without background.

    Raises:
        KirieError: when the map has no background.
    """
    known = foreground(result.classes)
    found: list[Masks] = []
    labels: list[int] = []
    scores: list[npt.NDArray[Any]] = []
    for number, label in enumerate(known):
        ids = apart(result.labels == label, settings.neck, settings.cut)
        masks = Masks.from_ids(ids)
        found.append(masks)
        labels += [number] * len(masks)
        if result.scores is None:
            scores.append(np.ones(len(masks)))
        else:
            chances: Any = result.scores[label]
            scores.append(np.asarray(ndimage.mean(chances, ids, np.arange(1, len(masks) + 1))).reshape(-1).clip(0, 1))
    size = (int(result.labels.shape[0]), int(result.labels.shape[1]))
    together = Masks(size, tuple(item for masks in found for item in masks.items))
    return Instances.from_masks(together, labels, result.classes.subset(known), np.concatenate(scores))


def apart(mask: Mask, neck: float, cut: int = 0) -> Ids:
    """Numbers (H, W) from 1 of the objects of a mask, 0 elsewhere; see `objects`."""
    if cut:
        return _grown(apart(_morphed(mask, cut, cv2.MORPH_OPEN), neck), mask)
    count, regions = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    if neck == 0 or count == 1:
        return np.asarray(regions, np.int32)
    padded = np.pad(mask, 1).view(np.uint8)  # the picture's edge is an edge
    depth: Any = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    peaks = (ndimage.maximum_filter(depth, 3) == depth) & mask
    basins, markers = cv2.connectedComponents(peaks.view(np.uint8), connectivity=8)
    if basins == count:
        return np.asarray(regions, np.int32)
    basin = _basins(depth, markers)
    height = ndimage.maximum(depth, markers, np.arange(basins)).astype(np.float64)
    joined = _joined(height, _necks(basin, depth), neck)
    numbers = np.unique(joined[1:], return_inverse=True)[1] + 1
    return np.concatenate([[0], numbers]).astype(np.int32)[basin]


def _grown(seeds: Ids, mask: Mask) -> Ids:
    """The seeds grown over the mask that holds them, a pixel a round; a region without any is an object of its own."""
    count, regions = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    seedless = np.ones(count, bool)
    seedless[regions[seeds > 0]] = seedless[0] = False
    numbers = np.zeros(count, np.int32)
    numbers[seedless] = int(seeds.max()) + np.arange(1, seedless.sum() + 1)
    ids = np.where(seeds > 0, seeds, numbers[regions])
    for _ in range(GROWTH):
        open_still = mask & (ids == 0)
        if not open_still.any():
            return np.asarray(ids, np.int32)
        ids[open_still] = cv2.dilate(ids.astype(np.float32), np.ones((3, 3), np.uint8))[open_still]
    # Long threads are filled at once, which divides those between two objects anywhere. SciPy's flood runs from one
    # edge of the picture into the other, so it gets a rim; what is outside is a marker, too.
    ids[~mask] = -1
    walls = np.pad(np.where(mask, 0, 255).astype(np.uint8), 1, constant_values=255)
    markers = np.pad(ids, 1, constant_values=-1)
    flat: Any = ndimage.watershed_ift(walls, markers, structure=np.ones((3, 3), bool))[1:-1, 1:-1]
    return np.where(mask, flat, 0).astype(np.int32)


def _basins(depth: npt.NDArray[np.float32], markers: Ids) -> Ids:
    """The number of the peak that each pixel comes to by going to its deepest neighbour again and again; 0 outside."""
    height, width = depth.shape
    flat = np.arange(depth.size).reshape(depth.shape)
    room = np.pad(depth, 1, constant_values=-1)
    best, onward = depth.copy(), flat.copy()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            there = room[1 + down : 1 + down + height, 1 + right : 1 + right + width]
            deeper = there > best
            best[deeper] = there[deeper]
            onward[deeper] = flat[deeper] + down * width + right
    way: npt.NDArray[Any] = onward.ravel()
    while True:  # each round doubles the way that a pixel has come
        further = way[way]
        if np.array_equal(further, way):
            break
        way = further
    return np.where(depth > 0, markers.ravel()[way].reshape(depth.shape), 0).astype(np.int32)


def _necks(ids: Ids, depth: npt.NDArray[np.float32]) -> dict[tuple[int, int], float]:
    """The depth of the neck between each two basins that touch: the deepest place where one passes into the other."""
    firsts, seconds, depths = [], [], []
    for here, there in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ):
        differ = (ids[here] != ids[there]) & (ids[here] > 0) & (ids[there] > 0)
        firsts.append(np.minimum(ids[here], ids[there])[differ])
        seconds.append(np.maximum(ids[here], ids[there])[differ])
        depths.append(np.minimum(depth[here], depth[there])[differ])
    first, second, deep = np.concatenate(firsts), np.concatenate(seconds), np.concatenate(depths)
    order = np.argsort(deep, kind="stable")  # of equal pairs the deepest comes last, and stays
    return dict(zip(zip(first[order].tolist(), second[order].tolist(), strict=True), deep[order].tolist(), strict=True))


def _joined(height: npt.NDArray[np.float64], necks: Mapping[tuple[int, int], float], share: float) -> Ids:
    """For each basin the one it ends up in: pairs are joined, the deepest neck first, where it is no real neck."""
    home = list(range(len(height)))

    def root(basin: int) -> int:
        while home[basin] != basin:
            home[basin] = home[home[basin]]
            basin = home[basin]
        return basin

    for (first, second), deep in sorted(necks.items(), key=lambda item: -item[1]):
        low, high = sorted((root(first), root(second)), key=lambda basin: height[basin])
        if low != high and deep >= share * height[low]:
            home[low] = high
    return np.array([root(basin) for basin in range(len(height))], np.int32)
