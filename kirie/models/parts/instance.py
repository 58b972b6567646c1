"""What instance models share: from the tensors of one picture to its `Instances`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kirie import boxes as box_maths
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models.contract import SegmentationModel
from kirie.results import Instances, Result


class Detections(NamedTuple):
    """What a model found in one picture, the highest score first, as tensors alone: what an export gives as well.

    Attributes:
        boxes: (N, 4) float xyxy pixels of the size that was asked for.
        labels: (N,) int64 class ids 0..K-1.
        scores: (N,) float in [0, 1].
        maps: (N, h, w) float probabilities on a grid of the model's own; see the model's `cut`.
        seen: (2,) int64, the H and W of the picture that the network saw, without padding.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    maps: Tensor
    seen: Tensor


class InstanceModel(SegmentationModel):
    """A model that gives Instances; a subclass writes `forward`, `loss`, `decode_tensors` and `cut`.

    Attributes:
        shown_threshold: the score from which on its objects are worth showing to a person.
    """

    task = "instance"
    shown_threshold: float

    def __init__(
        self,
        in_channels: int,
        classes: Classes | int,
        arguments: Mapping[str, Any],
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(classes, Classes):
            if type(classes) is not int or classes < 1:
                raise KirieError(f"classes must be a Classes value or a number above 0, got {classes!r:.80}.")
            names = ("object",) if classes == 1 else tuple(f"class {index}" for index in range(classes))
            classes = Classes(names, things=(True,) * classes)
        super().__init__(in_channels, classes, arguments, mean=mean, std=std)

    def own_truths(self, truths: Sequence[Result], count: int) -> list[Instances]:
        """The truths of a batch of `count` pictures, checked.

        Raises:
            KirieError: when there are more or fewer, they are no instances of the model's classes, or differ in size.
        """
        found = [truth for truth in truths if isinstance(truth, Instances)]
        wrong = {type(truth).__name__ for truth in truths if not isinstance(truth, Instances)}
        if wrong:
            raise KirieError(f"An instance model learns from Instances truths, got {', '.join(sorted(wrong))}.")
        if len(found) != count:
            raise KirieError(f"There must be one truth per picture, got {len(found)} for {count}.")
        sizes = {truth.size for truth in found}
        if len(sizes) > 1:
            raise KirieError(f"The truths of a batch must have one size, got {sorted(sizes)}.")
        top = max((int(truth.labels.max()) for truth in found if len(truth)), default=0)
        if top >= len(self.classes):
            raise KirieError(f"The truths have the class id {top}; the model knows 0..{len(self.classes) - 1}.")
        return found

    @abstractmethod
    def decode_tensors(self, raw: Any, size: Tensor) -> Detections:
        """The objects of one picture, without leaving tensors, so that exports hold the very same steps.

        Args:
            raw: of one picture: every tensor has a batch axis of length 1.
            size: (2,) int64, the H and W for which boxes are wanted.
        """

    @abstractmethod
    def cut(
        self, boxes: npt.NDArray[Any], maps: npt.NDArray[Any], seen: tuple[int, int], size: tuple[int, int]
    ) -> Masks:
        """The masks (N) at `size` (H, W) out of the maps of `Detections`, in NumPy, one at a time.

        Of the model it needs the constructor's arguments at most, no weights: one on the meta device serves as well.
        """

    def decode(self, raw: Any, sizes: Sequence[tuple[int, int]], *, scores: bool = False) -> list[Instances]:
        """The objects of each picture at the sizes (H, W) asked for, the highest score first.

        Objects have one score each; `scores`, for probabilities per pixel, changes nothing.
        """
        found = []
        for index, (height, width) in enumerate(sizes):
            one = type(raw)(*(_of_picture(part, index) for part in raw))
            size = torch.tensor([height, width], device=self.mean.device)
            found.append(self.as_instances(self.decode_tensors(one, size), (height, width)))
        return found

    def as_instances(self, found: Detections, size: tuple[int, int]) -> Instances:
        """Detections for a picture of `size` (H, W) as compact instances."""
        boxes, labels, scores, maps = (part.detach().cpu().numpy() for part in found[:4])
        height, width = found.seen.tolist()
        masks = self.cut(boxes, maps, (int(height), int(width)), size)
        kept = box_maths.clip(boxes, size)
        return Instances(kept, labels, np.clip(scores.astype(np.float32), 0, 1), masks, size, self.classes)


def _of_picture(part: Any, index: int) -> Any:
    """What one picture has of a field of `raw`: a batched tensor, several of them, or None."""
    if part is None:
        return None
    if isinstance(part, tuple):
        return tuple(_of_picture(each, index) for each in part)
    return part[index : index + 1]
