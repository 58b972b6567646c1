"""Several answers made one: of views of a picture (test-time augmentation), and of several models (ensembles)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from kirie.cleanup import clean
from kirie.data.folders import resize_image
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.matches import overlaps
from kirie.models.contract import SegmentationModel
from kirie.models.parts.region_objects import RegionObjects
from kirie.prediction.pictures import Picture
from kirie.prediction.predictor import Predictor
from kirie.prediction.selection import check_selection, select
from kirie.results import Instances, SemanticMap

SAME = 0.5  # objects of two answers are one where the IoU of their masks is above


class View(NamedTuple):
    """How a picture is shown: scaled, then mirrored left and right, then turned anticlockwise by quarters."""

    turns: int = 0
    mirrored: bool = False
    scale: float = 1.0


PLAIN = View()
TTA = {
    "none": (PLAIN,),
    "flip": (PLAIN, View(mirrored=True)),
    "flips": (PLAIN, View(mirrored=True), View(2), View(2, mirrored=True)),  # left and right, up and down, both
    "turns": tuple(View(turns, mirrored) for turns in range(4) for mirrored in (False, True)),
    "scales": tuple(View(0, mirrored, scale) for scale in (0.75, 1.0, 1.25) for mirrored in (False, True)),
}


class Averaged:
    """What several models see in several views of a picture, made one result; in place of a `Predictor`.

    Semantic models: the probabilities of all answers are averaged, and the clean-up of the first model is done on the
    mean. Instance models: objects of one class whose masks overlap by an IoU above 0.5 are one object. It has the mask
    of the surest answer, and as its score the mean over all answers, 0 where one has no such object. One answer stays
    as it is.

    Args:
        models: at least one; all for the same task, "semantic" or "instance", with the same classes (in any order) and
            channels. Each sees the pictures at the size that it wants.
        tta: a row of `TTA`: "none"; "flip" (left and right), for pictures with an up and a down; "flips"; "turns", the
            eight ways to lay a square down; "scales", three sizes, each mirrored too.
        device: "auto" (a GPU where there is one), or a torch device.
        batch_size: see `Predictor`.
        scores: see `Predictor`.
        threshold: see `Predictor`; of the mean score.
        classes: see `Predictor`.
        max_detections: see `Predictor`.
        cleanup: whether the clean-up that the first model asks for is done.

    Attributes:
        model: the first one.

    Raises:
        KirieError: when the models do not go together, are panoptic, there is no such way of `tta`, or it scales
            pictures that a model brings to one size.
    """

    def __init__(
        self,
        models: Sequence[SegmentationModel],
        *,
        tta: str = "none",
        device: str = "auto",
        batch_size: int | None = None,
        scores: bool = False,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        cleanup: bool = True,
    ) -> None:
        if tta not in TTA:
            raise KirieError(f"There is no test-time augmentation {tta!r:.60}; expected {', '.join(TTA)}.")
        if not models:
            raise KirieError("An ensemble needs at least one model.")
        self.model, self.scores, self._views = models[0], scores, TTA[tta]
        self._cleanup = models[0].cleanup if cleanup else None
        for other in models:
            _check_together(self.model, other)
        choice = {"threshold": threshold, "classes": classes, "max_detections": max_detections}
        self._selection: dict[str, Any] = {name: value for name, value in choice.items() if value is not None}
        if self.model.task == "instance":
            check_selection(self.model.classes, **self._selection)
        elif self._selection:
            raise KirieError(
                f"A semantic model finds no objects to choose among: leave {', '.join(self._selection)} out."
            )
        of_maps = [model.semantic if isinstance(model, RegionObjects) else model for model in models]
        self._maps = of_maps[0].task == "semantic"
        if any(view.scale != 1 for view in self._views) and any(map(_resizes, of_maps)):
            raise KirieError(
                "--tta scales shows a picture in three sizes, but the model brings every picture to one size, so that "
                "all three would look the same to it: take flip, flips or turns."
            )
        settings: dict[str, Any] = {"device": device, "batch_size": batch_size, "scores": self._maps}
        if not self._maps and max_detections is not None:
            settings["max_detections"] = max_detections
        self._predictors = [Predictor(model, cleanup=False, **settings) for model in of_maps]
        # For each of the other models, where its classes stand in the first one's order.
        names = of_maps[0].classes.names
        self._orders = [[model.classes.names.index(name) for name in names] for model in of_maps]
        self.batch_size = self._predictors[0].batch_size

    def __call__(self, pictures: Sequence[Picture]) -> list[Any]:
        """One result per picture (H, W, C) uint8, in their order and at their size.

        Raises:
            KirieError: as a `Predictor`.
        """
        made = [self._mean_map(picture) if self._maps else self._mean_objects(picture) for picture in pictures]
        return [select(result, **self._selection) for result in made] if self._selection else made

    def _answers(self, picture: Picture) -> Iterator[tuple[int, View, Any]]:
        """The number of the model, the view, and what it sees in it, one after another."""
        for number, predictor in enumerate(self._predictors):
            for view in self._views:
                yield number, view, predictor([shown(picture, view)])[0]

    def _mean_map(self, picture: Picture) -> Any:
        size = (picture.shape[0], picture.shape[1])
        total: npt.NDArray[np.float32] | None = None
        count, kind = 0, np.uint8
        for number, view, result in self._answers(picture):
            scores = undone(result.scores[self._orders[number]], view, size)
            total = scores if total is None else total + scores
            count, kind = count + 1, result.labels.dtype
        mean: Any = total
        mean /= count
        classes = self._predictors[0].model.classes
        averaged = SemanticMap(mean.argmax(0).astype(kind), classes, mean)
        if isinstance(self.model, RegionObjects):
            return self.model.of_map(averaged)
        cleaned = averaged if self._cleanup is None else clean(averaged, self._cleanup)
        return cleaned if self.scores else replace(cleaned, scores=None)

    def _mean_objects(self, picture: Picture) -> Instances:
        if len(self._predictors) == len(self._views) == 1:
            alone: Instances = self._predictors[0]([picture])[0]
            return alone
        size = (picture.shape[0], picture.shape[1])
        answers = []
        for number, view, result in self._answers(picture):
            # The number of a class in the first model's order, by that in this model's.
            place = np.argsort(self._orders[number])
            masks = Masks.from_crops([undone_crop(crop, view, size) for crop in result.masks.crops()], size)
            answers.append(Instances.from_masks(masks, place[result.labels], self.model.classes, result.scores))
        return voted(answers)


def shown(picture: Picture, view: View) -> Picture:
    """A picture (H, W, C) as a view shows it."""
    if view.scale != 1:
        size = tuple(max(1, round(side * view.scale)) for side in picture.shape[:2])
        picture = resize_image(picture, (size[0], size[1]))
    picture = picture[:, ::-1] if view.mirrored else picture
    return np.ascontiguousarray(np.rot90(picture, view.turns))


def undone(maps: npt.NDArray[Any], view: View, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Maps (K, h, w) of a view as maps (K, H, W) of the picture itself: exactly, or bilinearly where it was scaled."""
    back = np.rot90(maps, -view.turns, axes=(1, 2))
    back = np.ascontiguousarray(back[..., ::-1] if view.mirrored else back, np.float32)
    if back.shape[1:] == size:
        return back
    return np.stack([cv2.resize(each, size[::-1], interpolation=cv2.INTER_LINEAR) for each in back])


def undone_crop(crop: Crop, view: View, size: tuple[int, int]) -> Crop:
    """A mask of a view as a mask of the picture (H, W) itself."""
    if not crop.bits.size:
        return crop
    scaled = tuple(max(1, round(side * view.scale)) for side in size)
    height, width = scaled if view.turns % 2 == 0 else scaled[::-1]
    top, left, bits = crop
    for _ in range(view.turns % 4):  # a quarter back, clockwise, each time
        top, left = left, height - top - bits.shape[0]
        bits, (height, width) = np.rot90(bits, -1), (width, height)
    if view.mirrored:
        left, bits = width - left - bits.shape[1], bits[:, ::-1]
    if view.scale == 1:
        return Crop(top, left, np.ascontiguousarray(bits))
    down, across = size[0] / scaled[0], size[1] / scaled[1]
    first = (int(top * down), int(left * across))
    last = (
        min(size[0], int(np.ceil((top + bits.shape[0]) * down))),
        min(size[1], int(np.ceil((left + bits.shape[1]) * across))),
    )
    # Each pixel of the picture takes the mask's where its centre lies.
    rows = np.floor((np.arange(first[0], last[0]) + 0.5) / down).astype(int) - top
    columns = np.floor((np.arange(first[1], last[1]) + 0.5) / across).astype(int) - left
    inside = ((rows >= 0) & (rows < bits.shape[0]))[:, None] & ((columns >= 0) & (columns < bits.shape[1]))
    looked_up = bits[rows.clip(0, bits.shape[0] - 1)][:, columns.clip(0, bits.shape[1] - 1)]
    return Crop(*first, looked_up & inside)


def voted(answers: Sequence[Instances]) -> Instances:
    """The objects of several answers about one picture, made one; see `Averaged`. The surest come first."""
    scores = np.concatenate([each.scores for each in answers])
    labels = np.concatenate([each.labels for each in answers])
    voter = np.concatenate([np.full(len(each), number) for number, each in enumerate(answers)])
    masks = Masks(answers[0].size, tuple(item for each in answers for item in each.masks.items))
    pooled = Instances.from_masks(masks, labels, answers[0].classes, scores)
    left = [int(row) for row in np.argsort(-scores, kind="stable")]
    kept, means = [], []
    table = overlaps(pooled, pooled, within_class=True)
    while left:
        best = left[0]
        same = {int(voter[best]): best}  # by answer, of each the object that overlaps most
        for row in sorted(left, key=lambda row: -table[best, row]):
            if table[best, row] > SAME:
                same.setdefault(int(voter[row]), row)
        kept.append(best)
        means.append(sum(float(scores[row]) for row in same.values()) / len(answers))
        taken = set(same.values())
        left = [row for row in left if row not in taken]
    order = np.argsort(-np.array(means), kind="stable") if means else np.zeros(0, np.intp)
    chosen = np.array(kept, np.intp)[order]
    return replace(pooled[chosen], scores=np.array(means, np.float32)[order])


def _resizes(model: SegmentationModel) -> bool:
    """Whether a model sees every picture at one size."""
    return model.inputs.short_side is not None or getattr(model, "input_size", None) is not None


def _check_together(first: SegmentationModel, other: SegmentationModel) -> None:
    """Raises a KirieError where two models cannot answer together."""
    if other.task not in ("semantic", "instance"):
        raise KirieError(
            f"Answers of models for task {other.task!r} cannot be averaged; only semantic and instance ones."
        )
    if (first.task, first.in_channels) != (other.task, other.in_channels):
        raise KirieError(
            f"The models of an ensemble serve one task and see the same pictures, got {first.task!r} of "
            f"{first.in_channels} channels and {other.task!r} of {other.in_channels}."
        )
    if sorted(first.classes.names) != sorted(other.classes.names):
        raise KirieError(
            f"The models of an ensemble tell the same classes apart, got {', '.join(first.classes.names[:8])} and "
            f"{', '.join(other.classes.names[:8])}."
        )
    if isinstance(first, RegionObjects) != isinstance(other, RegionObjects):
        raise KirieError("Objects out of a semantic map and objects of an instance model are not averaged together.")
