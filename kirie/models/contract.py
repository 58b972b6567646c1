"""What every model is: three verbs, no modes, and pixels of its own.

    raw     = model(images)                 # (B, C, H, W) in [0, 1] -> a NamedTuple of tensors
    losses  = model.loss(raw, truths)       # -> {"dice": scalar, ...}, summed by the caller
    results = model.decode(raw, sizes)      # -> one SemanticMap, Instances or PanopticMap per image

No verb looks at `self.training` to decide what it returns.

Of `forward` the part that computes with weights is `network`, which gives named tensors alone, and `raw_of` makes of
them what `decode` takes. So an exported model differs in one thing: another program runs `network` (and `heads`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.cleanup import CleanupSettings
from kirie.errors import KirieError, counted
from kirie.results import Result


class Frame(NamedTuple):
    """The sides of pictures that a network need not pad: `step` times a whole number, and `rest` more."""

    step: int = 1
    rest: int = 0
    least: int = 1

    def side(self, side: int) -> int:
        """The smallest of them that a side of a picture fits into."""
        return max(-(-(side - self.rest) // self.step) * self.step + self.rest, self.least)


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
        frame_fill: what is beyond pictures in the sides of `frame`: their last row and column, or the mean colour.
        for_loss: outputs of `network` that only `loss` reads; an export leaves them out.
        artifact: of an exported model, which has no weights here: what runs its network, and the digest of its file.
    """

    task: ClassVar[str]
    advice: ClassVar[str] = ""
    # A model file that set one of these would make loading read other files or the network.
    never_from_file: ClassVar[frozenset[str]] = frozenset({"encoder_weights"})
    frame_fill: ClassVar[Literal["edge", "mean"]] = "edge"
    for_loss: ClassVar[frozenset[str]] = frozenset()
    artifact: str | None = None
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

    def forward(self, images: Tensor) -> Any:
        """Raw outputs, a NamedTuple of tensors, for images (B, C, H, W) in [0, 1]."""
        return self.raw_of(self.network(images), (images.shape[-2], images.shape[-1]))

    def network(self, images: Tensor) -> dict[str, Tensor]:
        """What `forward` computes by its weights, as tensors by name; what an export holds.

        Raises:
            KirieError: when the class does not tell it apart from the rest of `forward`, and so cannot be exported.
        """
        raise KirieError(
            f"{type(self).__name__} cannot be exported: it has a `forward` of its own in place of `network` and "
            "`raw_of`; see kirie/models/contract.py."
        )

    def raw_of(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> Any:
        """What `decode` takes, of the outputs of `network` for images of a `size` (H, W); those of `for_loss` may lack.

        Raises:
            KirieError: as `network`.
        """
        raise KirieError(f"{type(self).__name__} has no `raw_of`; see kirie/models/contract.py.")

    def heads(self) -> dict[str, tuple[Tensor, ...]]:
        """The modules by which `decode` computes with weights, by name, each with an example of its inputs.

        They take any number of rows, and an export has a graph of its own for each.
        """
        return {}

    @property
    def frame(self) -> Frame:
        """The sides that `network` does not pad. An export takes these alone: pictures come to it by `framed`."""
        return Frame()

    @property
    def least_side(self) -> int:
        """Pixels of a side from which on `framed` does all the padding that `network` does; an export takes no less."""
        return 2

    def framed(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), to the right and below continued to the sides of `frame` as `network` itself does it.

        What `network` then gives is that for the images themselves, except where `raw_of` cuts it to their size.
        """
        height, width = images.shape[-2:]
        tall, wide = self.frame.side(height), self.frame.side(width)
        if (tall, wide) == (height, width):
            return images
        if self.frame_fill == "edge":
            return F.pad(images, (0, wide - width, 0, tall - height), mode="replicate")
        framed = self.mean.to(images.dtype).repeat(len(images), 1, tall, wide)
        framed[..., :height, :width] = images
        return framed

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
