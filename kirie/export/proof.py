"""How an export compares with its original: on pictures, at their own and at odd sizes, by outputs and by results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kirie.data.folders import resize_image, resized_size
from kirie.matches import overlaps
from kirie.models.contract import SegmentationModel
from kirie.prediction.pictures import Picture
from kirie.prediction.predictor import Predictor
from kirie.results import Instances, PanopticMap

LEAST_EQUAL = 0.999  # share of the pixels of label maps that are equal
LEAST_IOU = 0.99  # of the masks of one object
EDGE = 1e-3  # objects that score so near the lowest of those given may be given by one side alone
ODD = ((97, 131), (75, 66), (19, 34))
RUNS = 5


@dataclass(frozen=True)
class Proof:
    """What was seen when an export and its original were run side by side.

    Attributes:
        sizes: (H, W) of the pictures.
        difference: the largest of any output of the network.
        equal: the share of pixels with the same answer; for objects, of those found by either that both found.
        least_iou: of the masks of an object that both found; None for maps.
        passed: whether `equal` is at least `LEAST_EQUAL`, for objects 1, and `least_iou` at least `LEAST_IOU`.
    """

    sizes: tuple[tuple[int, int], ...]
    difference: float
    equal: float
    least_iou: float | None
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def words(self) -> str:
        """It in a line."""
        sizes = ", ".join(f"{height} x {width}" for height, width in self.sizes)
        if self.least_iou is None:
            return f"{self.equal:.4%} of pixels equal, largest difference {self.difference:.2g} (at {sizes})"
        return (
            f"{self.equal:.2%} of objects found by both, IoU of their masks {self.least_iou:.4f} at least, "
            f"largest difference of outputs {self.difference:.2g} (at {sizes})"
        )


def prove(original: SegmentationModel, export: SegmentationModel, pictures: Sequence[Picture]) -> Proof:
    """Runs both on pictures and compares what they give; both are left on the CPU."""
    one, other = (Predictor(model, device="cpu", cleanup=False) for model in (original, export))
    same = total = 0.0
    difference, least = 0.0, None if original.task != "instance" else 1.0
    for picture in pictures:
        difference = max(difference, _difference(original, export, picture))
        first, second = one([picture])[0], other([picture])[0]
        if isinstance(first, Instances):
            both, either, iou = _objects(first, second)
            least = min(1.0 if least is None else least, iou)
        else:
            equal = _equal(first, second)
            both, either = float(np.count_nonzero(equal)), float(equal.size)
        same, total = same + both, total + either
    share = same / total if total else 1.0
    passed = share >= (LEAST_EQUAL if least is None else 1.0) and (least is None or least >= LEAST_IOU)
    sizes = tuple((int(p.shape[0]), int(p.shape[1])) for p in pictures)
    return Proof(sizes, difference, share, least, bool(passed))


def milliseconds(models: Sequence[SegmentationModel], picture: Picture) -> list[float]:
    """Of a whole prediction of a picture by each model, the medians of runs in turn."""
    predictors = [Predictor(model, device="cpu", cleanup=False) for model in models]
    times: list[list[float]] = [[] for _ in models]
    for run in range(RUNS + 1):
        for predictor, own in zip(predictors, times, strict=True):
            begun = time.perf_counter()
            predictor([picture])
            if run:  # the first warms up
                own.append(1e3 * (time.perf_counter() - begun))
    return [round(statistics.median(own), 3) for own in times]


def proof_pictures(pictures: Sequence[Picture], least: int) -> list[Picture]:
    """The pictures, no smaller than an export takes them, and the first one at odd sizes, a small one among them."""
    found = [p if min(p.shape[:2]) >= least else resize_image(p, resized_size(_size(p), least, None)) for p in pictures]
    return [*found, *(resize_image(found[0], size) for size in ODD if min(size) >= least)]


def _size(picture: Picture) -> tuple[int, int]:
    return int(picture.shape[0]), int(picture.shape[1])


@torch.inference_mode()
def _difference(original: SegmentationModel, export: SegmentationModel, picture: Picture) -> float:
    size = resized_size(_size(picture), original.inputs.short_side, original.inputs.long_side)
    scaled = picture if size == _size(picture) else resize_image(picture, size)
    images = torch.from_numpy(np.ascontiguousarray(scaled)).permute(2, 0, 1)[None].float().div_(255)
    ours, theirs = original.network(original.framed(images)), export.network(images)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def _equal(first: Any, second: Any) -> Any:
    """(H, W) bool, where two maps answer alike: the same class, and of things segments that lie on each other."""
    if not isinstance(first, PanopticMap):
        return first.labels == second.labels
    labels = [_labels(each) for each in (first, second)]
    width = int(second.ids.max()) + 1
    pairs, counts = np.unique(first.ids.astype(np.int64) * width + second.ids, return_counts=True)
    mate: dict[int, int] = {}
    for place in np.argsort(counts, kind="stable"):  # the pair with the most pixels comes last and stays
        mate[int(pairs[place] // width)] = int(pairs[place] % width)
    table = np.zeros(int(first.ids.max()) + 1, np.int64)
    table[list(mate)] = list(mate.values())
    return (labels[0] == labels[1]) & (table[first.ids] == second.ids)


def _labels(result: PanopticMap) -> Any:
    table = np.full(int(result.ids.max(initial=0)) + 1, -1, np.int64)
    for segment in result.segments:
        table[segment.id] = segment.label
    return table[result.ids]


def _objects(first: Instances, second: Instances) -> tuple[float, float, float]:
    """How many objects both found, how many either, and the least IoU of the masks of one that both found.

    One at the edge, where scores as low as the lowest are cut off, counts only where both found it.
    """
    # An object without a pixel at the picture's size is nothing that could lie on another.
    first, second = (each[each.masks.areas() > 0] for each in (first, second))
    if not len(first) or not len(second):
        return 0.0, float(len(first) + len(second)), 1.0
    table = overlaps(first, second, within_class=True)
    pairs: list[tuple[int, int]] = []
    for row, column in zip(*np.unravel_index(np.argsort(-table, axis=None, kind="stable"), table.shape), strict=True):
        if table[row, column] <= 0.5:
            break
        if all(row != a and column != b for a, b in pairs):
            pairs.append((int(row), int(column)))
    edge = max(float(each.scores.min()) for each in (first, second)) + EDGE
    alone = sum(float(s) > edge for i, s in enumerate(first.scores) if i not in {a for a, _ in pairs})
    alone += sum(float(s) > edge for i, s in enumerate(second.scores) if i not in {b for _, b in pairs})
    return float(len(pairs)), float(len(pairs) + alone), min((float(table[pair]) for pair in pairs), default=1.0)
