"""What every model is: three verbs, no modes, and pixels of its own.

    raw     = model(images)                 # (B, C, H, W) in [0, 1] -> a NamedTuple of tensors
    losses  = model.loss(raw, truths)       # -> {"dice": scalar, ...}, summed by the caller
    results = model.decode(raw, sizes)      # -> one SemanticMap, Instances or PanopticMap per image

No verb looks at `self.training` to decide what it returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kirie.classes import Classes
from kirie.cleanup import CleanupSettings
from kirie.errors import KirieError, counted
from kirie.results import Result


@dataclass(frozen=True)
class InputFacts:
    """What a model wants done to a picture before it sees it, beyond what the model does itself.

    Attributes:
        short_side: pictures are resized so that their shorter side has this many pixels; None keeps their size.
        long_side: most pixels that the longer side then has (Detectron2: 1333); None for no limit.
        patch: (H, W) of the patches it was trained on, or None when unknown.
    """

    short_side: int | None = None
    patch: tuple[int, int] | None = None
    long_side: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputFacts:
        """The facts that `to_dict` wrote.

        Raises:
            KirieError: when an entry is unknown or not a whole number above 0.
        """
        unknown = set(values) - {"short_side", "patch", "long_side"}
        side, patch, longest = values.get("short_side"), values.get("patch"), values.get("long_side")
        pair = (1, 1) if patch is None else patch
        sound = isinstance(pair, list | tuple) and len(pair) == 2
        sizes = [1 if side is None else side, 1 if longest is None else longest, *(pair if sound else ())]
        if unknown or not sound or not all(type(v) is int and 0 < v < 2**20 for v in sizes):
            raise KirieError(
                f"Input facts must be `short_side`, `long_side` and `patch` in pixels, got {dict(values)!r:.120}."
            )
        return cls(side, None if patch is None else (patch[0], patch[1]), longest)


class SegmentationModel(nn.Module, ABC):
    """The contract of all architectures.

    A subclass's `__init__` takes `in_channels`, `classes` and plain JSON values only, and passes them on as
    `arguments`, so that a model file can build it again.

    Attributes:
        task: which of the three result types `decode` gives.
        advice: when to choose it, in one sentence.
        never_from_file: constructor arguments that lead outside the model; not kept in a model file, refused from one.
        classes: the K classes it tells apart.
        in_channels: C of the images it takes (3: RGB).
        arguments: the constructor's other arguments by name, plain JSON values.
        inputs: what is done to a picture before the model sees it.
        cleanup: what is done to its semantic maps afterwards, by whoever predicts with it; None for nothing.
        recipe: what it was trained by, a record of plain values out of its file that may be missing or of any content.
    """

    task: ClassVar[str]
    advice: ClassVar[str] = ""
    # A model file that set one of these would make loading read other files or the network.
    never_from_file: ClassVar[frozenset[str]] = frozenset({"encoder_weights"})
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_channels: int,
        classes: Classes,
        arguments: Mapping[str, Any],
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if type(in_channels) is not int or in_channels < 1:
            raise KirieError(f"in_channels must be a whole number above 0, got {in_channels!r}.")
        self.in_channels = in_channels
        self.classes = classes
        self.arguments = dict(arguments)
        self.inputs = InputFacts()
        self.cleanup: CleanupSettings | None = None
        self.recipe: Mapping[str, Any] | None = None
        self.register_buffer("mean", _per_channel("mean", mean, in_channels, 0.0), persistent=False)
        self.register_buffer("std", _per_channel("std", std, in_channels, 1.0), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) with the model's mean taken off and divided by its standard deviation.

        Raises:
            KirieError: when the shape, the number of channels or the type is not what the model was built for.
        """
        sound = images.ndim == 4 and images.shape[1] == self.in_channels and 0 not in images.shape
        if not sound or not images.is_floating_point():
            raise KirieError(
                f"Expected non-empty float images of shape (B, {self.in_channels}, H, W) in [0, 1], "
                f"got {images.dtype} {tuple(images.shape)}."
            )
        return (images - self.mean) / self.std

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        """The model's parts in order from the picture's side to the head, for layer-wise learning rates.

        A parameter that is in no level counts to the last one, and one that is in several to the last of them. Without
        an order of its own a model is one level.
        """
        return [[self]]

    @abstractmethod
    def forward(self, images: Tensor) -> Any:
        """Raw outputs, a NamedTuple of tensors, for images (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def loss(self, raw: Any, truths: Sequence[Result]) -> dict[str, Tensor]:
        """Named scalar losses; the caller adds them up."""

    @abstractmethod
    def decode(self, raw: Any, sizes: Sequence[tuple[int, int]], *, scores: bool = False) -> list[Any]:
        """One result per image, at the sizes (H, W) asked for; `scores` keeps per-pixel probabilities."""


def unsound(model: nn.Module) -> str | None:
    """What is wrong with a model's numbers, in words: NaN or infinity as after a broken training, variances below 0."""
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        return f"NaN or infinity in {counted(len(broken), 'tensor')}, the first is {broken[0]!r}"
    negative = [name for name, t in state.items() if name.endswith("running_var") and bool((t < 0).any())]
    if negative:
        return f"variances below 0 in {counted(len(negative), 'tensor')}, the first is {negative[0]!r}"
    return None


def _per_channel(name: str, values: Sequence[float] | None, channels: int, default: float) -> Tensor:
    given = [default] * channels if values is None else list(values)
    if len(given) != channels:
        raise KirieError(f"{name} has {len(given)} values for {channels} channels; give one per channel.")
    return torch.tensor(given, dtype=torch.float32).reshape(1, -1, 1, 1)
