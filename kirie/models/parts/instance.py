"""What instance models share: from the tensors of one picture to its `Instances`."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kirie import boxes as box_maths
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.models.contract import SegmentationModel
from kirie.models.parts.encoder import Encoder
from kirie.results import Instances, Result

AT_ONCE = 32  # objects whose maps are held at a time


class Detections(NamedTuple):
    """What a model found in one picture, the highest score first, as tensors alone.

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


def numbered(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors of one kind among the named outputs of a network: `name0`, `name1`..."""
    return {f"{name}{index}": tensor for index, tensor in enumerate(tensors)}


def by_number(name: str, outputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The tensors that `numbered` named, in their order."""
    count = sum(key.rstrip("0123456789") == name for key in outputs)
    return tuple(outputs[f"{name}{index}"] for index in range(count))


def seen_sizes(size: tuple[int, int], like: Tensor) -> Tensor:
    """The field `seen` of raw outputs, (B, 2) int64, for B pictures of one size (H, W)."""
    return torch.tensor([list(size)], dtype=torch.int64, device=like.device).expand(len(like), -1)


class Chosen(NamedTuple):
    """The objects of one picture before their maps are made.

    Attributes:
        boxes: as in `Detections`, like `labels`, `scores` and `seen`.
        labels: (N,).
        scores: (N,).
        sources: (N, ...) each, what a map is made of besides the network's outputs.
        seen: (2,).
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    sources: tuple[Tensor, ...]
    seen: Tensor

    def from_score(self, least: float) -> Chosen:
        """Those that score at least so much."""
        kept = self.scores >= least
        sources = tuple(part[kept] for part in self.sources)
        return Chosen(self.boxes[kept], self.labels[kept], self.scores[kept], sources, self.seen)


class InstanceModel(SegmentationModel):
    """A model that gives Instances; a subclass writes `network`, `raw_of`, `loss`, `choose`, `maps` and `cut`.

    What `forward` gives has the field `seen`, (B, 2) int64, H and W of the pictures without padding.

    Attributes:
        shown_threshold: the score from which on its objects are worth showing to a person.
        max_detections: most objects of a picture.
    """

    task = "instance"
    frame_fill = "mean"
    shown_threshold: float
    max_detections: int

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

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        """The encoder's levels, then all the rest; see `SegmentationModel.levels`."""
        encoder = getattr(self, "encoder", None)
        if not isinstance(encoder, Encoder):
            return super().levels()
        rest = [child for child in self.children() if child is not encoder]
        return [*(level for level in encoder.levels() if level), rest]

    def own_truths(self, truths: Sequence[Result], count: int, seen: tuple[int, int] | None = None) -> list[Instances]:
        """The truths of a batch of `count` pictures, checked.

        Args:
            truths: of the batch.
            count: of the pictures.
            seen: (H, W) of the pictures without padding; None where the network saw them at another size than theirs.

        Raises:
            KirieError: when there are more or fewer, they are no instances of the model's classes, or differ in size
                from one another or from the pictures.
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
        if seen is not None and sizes - {seen}:
            raise KirieError(f"The truths have the size {found[0].size}, the pictures {seen}; they must be the same.")
        top = max((int(truth.labels.max()) for truth in found if len(truth)), default=0)
        if top >= len(self.classes):
            raise KirieError(f"The truths have the class id {top}; the model knows 0..{len(self.classes) - 1}.")
        return found

    def giving(self, most: int) -> Self:
        """The same model with limits that let it give `most` objects of a picture; none of its limits is lowered.

        It is another object, of the same parts and weights, so that the limits of this one stay. A subclass with other
        limits on the way to its objects raises them too, to twice as many, as some of them are the same object.
        """
        more = copy.copy(self)
        more.max_detections = max(self.max_detections, most)
        return more

    @abstractmethod
    def choose(self, raw: Any, size: Tensor) -> Chosen:
        """The objects of one picture without their maps; arguments as of `decode_tensors`."""

    @abstractmethod
    def maps(self, raw: Any, sources: tuple[Tensor, ...]) -> Tensor:
        """The maps (N, h, w) of objects, float probabilities, out of their `sources`; `raw` of one picture."""

    @torch.no_grad()
    def decode_tensors(self, raw: Any, size: Tensor) -> Detections:
        """The objects of one picture, without leaving tensors: `decode` takes the very same steps.

        Args:
            raw: of one picture: every tensor has a batch axis of length 1.
            size: (2,) int64, the H and W for which boxes are wanted.
        """
        with torch.autocast(self.mean.device.type, enabled=False):
            chosen = self.choose(raw, size)
            return Detections(*chosen[:3], self.maps(raw, chosen.sources), chosen.seen)

    @abstractmethod
    def cut(
        self, boxes: npt.NDArray[Any], maps: npt.NDArray[Any], seen: tuple[int, int], size: tuple[int, int]
    ) -> Masks:
        """The masks (N) at `size` (H, W) out of the maps of `Detections`, in NumPy, one at a time.

        Of the model it needs the constructor's arguments at most, no weights: one on the meta device serves as well.
        """

    def decode(
        self, raw: Any, sizes: Sequence[tuple[int, int]], *, scores: bool = False, least: float = 0.0
    ) -> list[Instances]:
        """The objects of each picture at the sizes (H, W) asked for, the highest score first.

        Args:
            raw: what `forward` gave for B images.
            sizes: B sizes (H, W).
            scores: for probabilities per pixel; objects have one score each, so it changes nothing.
            least: objects that score less are left out, before their masks are made.

        Raises:
            KirieError: when there are more or fewer sizes than pictures, or the network's outputs are NaN.
        """
        if len(sizes) != len(raw.seen):
            raise KirieError(f"There must be one size per picture, got {len(sizes)} for {len(raw.seen)}.")
        refuse_nan(raw)
        with torch.no_grad(), torch.autocast(self.mean.device.type, enabled=False):
            return [
                self._decoded(_of_picture(raw, index), (size[0], size[1]), least) for index, size in enumerate(sizes)
            ]

    def _decoded(self, raw: Any, size: tuple[int, int], least: float) -> Instances:
        """The objects of one picture: its maps are made and cut some at a time, as all of them may be gigabytes."""
        chosen = self.choose(raw, torch.tensor(size, device=self.mean.device))
        chosen = chosen.from_score(least) if least > 0 else chosen
        masks: list[Crop | bytes] = []
        for start in range(0, len(chosen.boxes), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            maps = self.maps(raw, tuple(part[some] for part in chosen.sources))
            masks += self._masks(chosen.boxes[some], maps, chosen.seen, size).items
        return self.instances(chosen.boxes, chosen.labels, chosen.scores, Masks(size, tuple(masks)))

    def as_instances(self, found: Detections, size: tuple[int, int]) -> Instances:
        """Detections for a picture of `size` (H, W) as compact instances."""
        return self.instances(*found[:3], self._masks(found.boxes, found.maps, found.seen, size))

    def instances(self, boxes: Tensor, labels: Tensor, scores: Tensor, masks: Masks) -> Instances:
        """Instances of boxes (N, 4), labels (N,), scores (N,) and their masks, N in a picture."""
        kept = box_maths.clip(_array(boxes), masks.size)
        sound = np.clip(_array(scores).astype(np.float32), 0, 1)
        return Instances(kept, _array(labels), sound, masks, masks.size, self.classes)

    def _masks(self, boxes: Tensor, maps: Tensor, seen: Tensor, size: tuple[int, int]) -> Masks:
        height, width = seen.tolist()
        return self.cut(_array(boxes), _array(maps), (int(height), int(width)), size)


def _array(x: Tensor) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = x.detach().cpu().numpy()
    return values


def refuse_nan(raw: Any) -> None:
    """Raises `KirieError` where any tensor of what `forward` gave holds NaN."""
    if _has_nan(raw):
        raise KirieError(
            "The network's outputs are NaN: its weights or the picture are, or half precision overflowed; look at "
            "the weights, or predict in float32."
        )


def _has_nan(part: Any) -> bool:
    """Whether any number of nested tuples of tensors is NaN; a sum finds that in one pass."""
    if isinstance(part, tuple):
        return any(map(_has_nan, part))
    return part is not None and part.is_floating_point() and bool(part.sum().isnan())


def _of_picture(part: Any, index: int) -> Any:
    """What one picture has of `raw` or a field of it: a batched tensor, several of them, or None."""
    if part is None:
        return None
    if isinstance(part, tuple):
        own = (_of_picture(each, index) for each in part)
        return type(part)(*own) if hasattr(part, "_fields") else tuple(own)
    return part[index : index + 1]
