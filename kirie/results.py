"""The three result types, the same for truth and prediction: frozen, checked at birth, convertible into one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks, count_ids, rank_ids

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """A class for every pixel.

    Attributes:
        labels: (H, W) uint8 or int32, class ids 0..K-1, or `classes.void`.
        classes: the K classes.
        scores: (K, H, W) float probabilities in [0, 1], or None.

    Raises:
        KirieError: on another shape or type, or an id that is no class.
    """

    labels: Labels
    classes: Classes
    scores: npt.NDArray[np.floating[Any]] | None = None

    def __post_init__(self) -> None:
        _expect_map("SemanticMap.labels", self.labels, (np.uint8, np.int32))
        top, low = int(self.labels.max()), int(self.labels.min())
        if low < 0 or (top >= len(self.classes) and _has_unknown(self.labels, self.classes)):
            raise KirieError(
                f"SemanticMap.labels holds ids from {low} to {top}; expected 0..{len(self.classes) - 1} or void "
                f"({self.classes.void})."
            )
        if self.scores is not None:
            expected = (len(self.classes), *self.size)
            sound = isinstance(self.scores, np.ndarray) and self.scores.dtype.kind == "f"
            if not sound or self.scores.shape != expected:
                raise KirieError(
                    f"SemanticMap.scores must be float of shape (K, H, W) = {expected}, got {_described(self.scores)}."
                )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.labels.shape[0]), int(self.labels.shape[1])


@dataclass(frozen=True, eq=False)
class Instances:
    """N objects of one picture, each with a box, a class, a score and a mask; masks may overlap.

    Attributes:
        boxes: (N, 4) float32 xyxy pixel edges.
        labels: (N,) int64 class ids 0..K-1.
        scores: (N,) float32 in [0, 1]; 1 for truth.
        masks: N compact masks.
        size: (H, W) of the picture.
        classes: the K classes.
        crowd: (N,) bool, which of a truth's rows are no single object but a region that holds many of one class
            (COCO's `iscrowd`): it is neither learned nor counted, and what is found in it is not wrong. None is where
            nothing is given.
        areas: (N,) float64 pixels as the file of a truth states them, by which COCO's AP sorts objects into small,
            medium and large; None takes the masks' pixels.

    Raises:
        KirieError: when lengths, shapes, sizes, ids or scores do not fit.
    """

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    masks: Masks
    size: tuple[int, int]
    classes: Classes
    crowd: npt.NDArray[np.bool_] = None  # type: ignore[assignment]  # an array from birth on
    areas: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        count = len(self.masks)
        if self.crowd is None:
            object.__setattr__(self, "crowd", np.zeros(count, bool))
        fields = {
            "boxes": (self.boxes, (count, 4)),
            "labels": (self.labels, (count,)),
            "scores": (self.scores, (count,)),
            "crowd": (self.crowd, (count,)),
        }
        if self.areas is not None:
            fields["areas"] = (self.areas, (count,))
        for name, (array, shape) in fields.items():
            if not isinstance(array, np.ndarray) or array.shape != shape:
                raise KirieError(
                    f"Instances.{name} must be an array of shape {shape} for {count} masks, got {_described(array)}."
                )
        kinds = self.boxes.dtype.kind + self.labels.dtype.kind + self.scores.dtype.kind
        if count and not (kinds[0] in "fiu" and kinds[1] in "iu" and kinds[2] in "fiu"):
            raise KirieError(
                "Instances need numbers as boxes and scores and whole numbers as labels, "
                f"got {self.boxes.dtype}, {self.scores.dtype} and {self.labels.dtype}."
            )
        for name, dtype in (("boxes", np.float32), ("labels", np.int64), ("scores", np.float32)):
            object.__setattr__(self, name, getattr(self, name).astype(dtype, copy=False))
        if self.crowd.dtype != np.bool_:
            raise KirieError(f"Instances.crowd must be bool, got {self.crowd.dtype}.")
        if self.areas is not None and count and not (self.areas.dtype.kind in "fiu" and (self.areas >= 0).all()):
            raise KirieError("Instances.areas must be numbers of 0 or more.")
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        if self.masks.size != self.size:
            raise KirieError(f"Instances.masks are for a picture of size {self.masks.size}, expected {self.size}.")
        if count and (self.labels.min() < 0 or self.labels.max() >= len(self.classes)):
            raise KirieError(
                f"Instances.labels holds ids from {self.labels.min()} to {self.labels.max()}; "
                f"expected 0..{len(self.classes) - 1}."
            )
        if count and not (np.isfinite(self.boxes).all() and (self.scores >= 0).all() and (self.scores <= 1).all()):
            raise KirieError("Instances need finite boxes and scores in [0, 1].")

    @classmethod
    def from_masks(
        cls,
        masks: Masks,
        labels: Sequence[int] | npt.NDArray[Any],
        classes: Classes,
        scores: npt.NDArray[Any] | None = None,
        crowd: npt.NDArray[np.bool_] | None = None,
    ) -> Instances:
        """Instances with the boxes that the masks have, and scores of 1 where none are given."""
        count = len(masks)
        given = np.ones(count, np.float32) if scores is None else np.asarray(scores, np.float32)
        crowds = np.zeros(count, bool) if crowd is None else crowd
        return cls(masks.boxes(), np.asarray(labels, np.int64).reshape(-1), given, masks, masks.size, classes, crowds)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Any) -> Instances:
        """The instances that a slice, an array of whole numbers or an (N,) bool array selects, in that order."""
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return Instances(
            self.boxes[chosen],
            self.labels[chosen],
            self.scores[chosen],
            self.masks[chosen],
            self.size,
            self.classes,
            self.crowd[chosen],
            None if self.areas is None else self.areas[chosen],
        )

    def singles(self) -> Instances:
        """The rows that are single objects, without crowds."""
        return self[~self.crowd] if self.crowd.any() else self

    def with_masks(self, index: Any, masks: Masks) -> Instances:
        """The rows that an index selects with other masks, of a picture of any size, and the boxes of these."""
        return Instances.from_masks(masks, self.labels[index], self.classes, self.scores[index], self.crowd[index])


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: the number its pixels carry, above 0.
        label: class id 0..K-1.
        is_thing: whether it is one object (True) or all of a stuff class (False).
        score: in [0, 1]; 1 for truth.
        area: pixels.
        crowd: whether it is a truth's region that holds many objects of one class (COCO's `iscrowd`).
    """

    id: int
    label: int
    is_thing: bool
    score: float
    area: int
    crowd: bool = False


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """A segment for every pixel.

    Attributes:
        ids: (H, W) int32 segment ids; 0 is void.
        segments: one entry for every id that occurs, in any order.
        classes: the K classes.

    Raises:
        KirieError: when ids and segments do not match, ids repeat, areas are wrong or a label is no class.
    """

    ids: npt.NDArray[np.int32]
    segments: tuple[Segment, ...]
    classes: Classes

    def __post_init__(self) -> None:
        _expect_map("PanopticMap.ids", self.ids, (np.int32,))
        object.__setattr__(self, "segments", tuple(self.segments))
        found, areas = count_ids(self.ids)
        counted = {i: a for i, a in zip(found.tolist(), areas.tolist(), strict=True) if i != 0}
        stated = {segment.id: segment.area for segment in self.segments}
        if len(stated) != len(self.segments):
            raise KirieError("PanopticMap.segments repeats an id; each segment needs an id of its own.")
        if counted != stated:
            wrong = sorted(set(counted.items()) ^ set(stated.items()))[:4]
            raise KirieError(
                f"PanopticMap.ids and .segments disagree on (id, area) {wrong}; every id needs its segment."
            )
        for segment in self.segments:
            if segment.id < 1 or not 0 <= segment.label < len(self.classes) or not 0 <= segment.score <= 1:
                raise KirieError(
                    f"{segment} needs an id above 0, a label in 0..{len(self.classes) - 1} and a score in [0, 1]."
                )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.ids.shape[0]), int(self.ids.shape[1])


Result = SemanticMap | Instances | PanopticMap


def stacking(instances: Instances) -> npt.NDArray[np.int64]:
    """The order (N,) in which instances lie on one another in a map or a drawing, the lowest first.

    Crowds lie below all objects, higher scores above lower ones, and among equal scores (as those of a truth are)
    smaller masks above larger ones; of equal masks the later one is on top.
    """
    order = np.lexsort((-instances.masks.areas(), instances.scores, ~instances.crowd))
    return order.astype(np.int64, copy=False)


def id_map(instances: Instances, ids: Sequence[int] | None = None) -> npt.NDArray[np.int32]:
    """One (H, W) int32 map with the id of the topmost instance by `stacking`, 0 where there is none.

    Args:
        instances: N objects.
        ids: a number for each; 1..N in their order when not given.
    """
    order = stacking(instances)
    return instances.masks[order].id_map((order + 1).tolist() if ids is None else [ids[row] for row in order])


def to_semantic(result: Result) -> SemanticMap:
    """The classes of a result without its objects.

    Instances get `background` as class 0 for pixels that no mask covers (unless their classes have one already); where
    masks overlap they cover one another in the order of `stacking`. Void stays void.
    """
    if isinstance(result, SemanticMap):
        return result
    if isinstance(result, Instances):
        classes = result.classes.with_background()
        shift = len(classes) - len(result.classes)
        return SemanticMap(_as_labels(id_map(result, (result.labels + shift).tolist()), classes), classes)
    return SemanticMap(_as_labels(_look_up(result), result.classes), result.classes)


def to_panoptic(result: Result, *, min_area: int = 1) -> PanopticMap:
    """A segment per object, or per class for a semantic map.

    Instances cover one another in the order of `stacking`, and uncovered pixels are void. A semantic map becomes one
    segment per class, each marked as stuff, because it does not know its objects.

    Args:
        result: any of the three types.
        min_area: segments with fewer visible pixels become void.
    """
    if isinstance(result, PanopticMap):
        return result
    if isinstance(result, Instances):
        rows = zip(result.labels.tolist(), result.scores.tolist(), result.crowd.tolist(), strict=True)
        facts = {i: Segment(i, label, True, score, 0, crowd) for i, (label, score, crowd) in enumerate(rows, 1)}
        return _collect(id_map(result), result.classes, facts, min_area)
    ids = np.where(result.labels == result.classes.void, 0, result.labels.astype(np.int32) + 1).astype(np.int32)
    facts = {label + 1: Segment(label + 1, label, False, 1.0, 0) for label in range(len(result.classes))}
    return _collect(ids, result.classes, facts, min_area)


def to_instances(result: Result) -> Instances:
    """The things of a panoptic map as instances, in the order of its segments, crowds as crowds; instances as they are.

    Raises:
        KirieError: for a semantic map, which does not know its objects.
    """
    if isinstance(result, Instances):
        return result
    if isinstance(result, SemanticMap):
        raise KirieError("A SemanticMap does not tell one object of a class from another; only a PanopticMap has both.")
    things = [segment for segment in result.segments if segment.is_thing]
    masks = Masks.from_ids(result.ids, [segment.id for segment in things])
    scores = np.array([segment.score for segment in things], np.float32)
    crowd = np.array([segment.crowd for segment in things], bool)
    return Instances.from_masks(masks, [segment.label for segment in things], result.classes, scores, crowd)


def things_of(result: PanopticMap) -> Instances:
    """The objects of a panoptic map's classes of things, with these classes alone and numbered among them.

    Raises:
        KirieError: when none of the classes is a thing.
    """
    things = [label for label, thing in enumerate(result.classes.things) if thing]
    if not things:
        raise KirieError(
            f"None of the classes {', '.join(result.classes.names[:12])} is a thing, so there are no objects."
        )
    found = to_instances(result)
    found = found[np.isin(found.labels, things)]
    rows = np.searchsorted(things, found.labels).astype(np.int64)
    return replace(found, labels=rows, classes=result.classes.subset(things))


def _collect(ids: npt.NDArray[np.int32], classes: Classes, facts: dict[int, Segment], min_area: int) -> PanopticMap:
    areas = np.bincount(ids.ravel(), minlength=max(facts, default=0) + 1)
    kept = [i for i in facts if areas[i] >= max(min_area, 1)]
    keep = np.zeros(len(areas), bool)
    keep[kept] = True
    segments = tuple(replace(facts[i], area=int(areas[i])) for i in kept)
    return PanopticMap(np.where(keep[ids], ids, 0).astype(np.int32), segments, classes)


def _look_up(result: PanopticMap) -> npt.NDArray[Any]:
    """The (H, W) label map of a panoptic map."""
    found, rank = rank_ids(result.ids)
    label = {0: result.classes.void} | {segment.id: segment.label for segment in result.segments}
    mapped: npt.NDArray[Any] = np.array([label[i] for i in found.tolist()], np.int32)[rank]
    return mapped


def _as_labels(labels: npt.NDArray[Any], classes: Classes) -> Labels:
    return labels.astype(np.uint8) if classes.void == 255 else labels.astype(np.int32)


def _expect_map(name: str, array: Any, dtypes: tuple[type, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.type not in dtypes or not array.size:
        wanted = " or ".join(np.dtype(d).name for d in dtypes)
        raise KirieError(f"{name} must be a non-empty {wanted} array of shape (H, W), got {_described(array)}.")


def _described(array: Any) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__


def _has_unknown(labels: Labels, classes: Classes) -> bool:
    return bool(((labels >= len(classes)) & (labels != classes.void)).any())
