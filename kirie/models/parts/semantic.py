"""What all semantic models share: the raw output, `loss` and `decode`. A model adds only `__init__` and `forward`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.criterion import build_loss
from kirie.errors import KirieError
from kirie.models.contract import Frame, SegmentationModel
from kirie.models.parts.checks import check_flag
from kirie.models.parts.encoder import Encoder
from kirie.models.parts.label_maps import largest_at
from kirie.models.parts.sizes import same
from kirie.results import Result, SemanticMap

Criterion = Callable[[Tensor, Tensor], dict[str, Tensor]]


class SemanticRaw(NamedTuple):
    """What a semantic model's `forward` gives.

    Attributes:
        logits: (B, K, h, w), or (B, 1, h, w) for a binary model: the logit of class 1.
        auxiliary: (B, C, h, w), the map that an auxiliary head learns from, or None; only `loss` runs that head.
    """

    logits: Tensor
    auxiliary: Tensor | None = None


@runtime_checkable
class Levelled(Protocol):
    """An encoder that knows the order of its parts."""

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        """They, from the picture's side on, for layer-wise learning rates; see `SegmentationModel.levels`."""
        ...


class SemanticModel(SegmentationModel):
    """A model whose results are `SemanticMap`s.

    Attributes:
        encoder: the part before the head, where the model has one, or None; best `Levelled`.
        auxiliary: the head that learns from `SemanticRaw.auxiliary`, or None.
        binary: whether two classes share one logit (sigmoid) in place of two (softmax).
        criterion: (logits, labels) -> named losses; cross entropy unless a recipe sets another.
        auxiliary_weight: factor of the auxiliary head's losses.
    """

    task = "semantic"
    for_loss = frozenset({"auxiliary"})

    def __init__(
        self,
        in_channels: int,
        classes: Classes | int,
        arguments: Mapping[str, Any],
        *,
        binary: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if binary is not None:
            check_flag("binary", binary)
        if not isinstance(classes, Classes):
            if type(classes) is not int or classes < 1:
                raise KirieError(f"classes must be a Classes value or a number above 0, got {classes!r:.80}.")
            binary = classes == 1 if binary is None else binary
            classes = Classes.numbered(classes)
        if len(classes) < 2:
            raise KirieError(
                f"{classes.names[0]!r} is the only class; add one for the rest: classes.with_background()."
            )
        binary = bool(binary)
        if binary and len(classes) != 2:
            raise KirieError(f"A binary model tells two classes apart, got {len(classes)}: leave `binary` out.")
        super().__init__(in_channels, classes, {**arguments, "binary": binary}, mean=mean, std=std)
        self.encoder: nn.Module | None = None
        self.auxiliary: nn.Module | None = None
        self.binary = binary
        self.criterion: Criterion = build_loss("bce" if self.binary else "ce", void=classes.void)
        self.auxiliary_weight = 0.4

    @property
    def logit_channels(self) -> int:
        """Channels of the logits: K, or 1 for a binary model."""
        return 1 if self.binary else len(self.classes)

    @property
    def frame(self) -> Frame:
        """With an `Encoder`, what that pads to; see `SegmentationModel.frame`."""
        if not isinstance(self.encoder, Encoder):
            return super().frame
        return Frame(self.encoder.divisor, least=2 * self.encoder.strides[-1])

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        """With a `Levelled` encoder: its levels, then all the rest. See `SegmentationModel.levels`."""
        if not isinstance(self.encoder, Levelled):
            return super().levels()
        rest = [child for name, child in self.named_children() if name != "encoder"]
        return [*(level for level in self.encoder.levels() if level), rest]

    @abstractmethod
    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits, and what an auxiliary head learns from, for images (B, C, H, W) in [0, 1]."""

    def network(self, images: Tensor) -> dict[str, Tensor]:
        """The logits, and the map that an auxiliary head learns from; see `SegmentationModel.network`."""
        raw = self(images)
        return {name: part for name, part in raw._asdict().items() if part is not None}

    def raw_of(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> SemanticRaw:
        """See `SegmentationModel.raw_of`."""
        framed = self.frame.side(size[0]), self.frame.side(size[1])
        logits = outputs["logits"]
        if framed != tuple(size) and self.artifact is not None:  # otherwise `forward` has cut them to the picture
            logits = full_size(logits, framed, size)
        return SemanticRaw(logits, outputs.get("auxiliary"))

    def loss(self, raw: SemanticRaw, truths: Sequence[Result]) -> dict[str, Tensor]:
        """The criterion's named losses against label maps that all have one size (H, W).

        Raises:
            KirieError: when the truths are no semantic maps or differ in size.
        """
        labels = _stack(truths).to(raw.logits.device, non_blocking=True)  # (B, H, W)
        size = (int(labels.shape[1]), int(labels.shape[2]))
        losses = self.criterion(resized(raw.logits, size), labels)
        if raw.auxiliary is not None:
            auxiliary = self.criterion(resized(self.auxiliary_logits(raw.auxiliary, size), size), labels)
            losses |= {f"{name}_auxiliary": value * self.auxiliary_weight for name, value in auxiliary.items()}
        return losses

    def auxiliary_logits(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, h, w) of the auxiliary head, which cover the picture exactly.

        Args:
            features: what `forward` gave as `auxiliary`.
            size: (H, W) of the pictures.

        Raises:
            KirieError: when the model has no such head.
        """
        if self.auxiliary is None:
            raise KirieError(f"{type(self).__name__} has no auxiliary head.")
        return self.covering(self.auxiliary(features), size)

    def covering(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, h, w) of a head, brought to cover the picture exactly; see `full_size`.

        Models that pad the picture, or whose maps are enlarged otherwise than `decode` does it, say here how.

        Args:
            logits: as the head gives them.
            size: (H, W) of the picture.
        """
        return logits

    def decode(self, raw: SemanticRaw, sizes: Sequence[tuple[int, int]], *, scores: bool = False) -> list[SemanticMap]:
        """One label map per image at the sizes (H, W) asked for; as of the arg max of logits resized to these.

        Args:
            raw: what `forward` gave for B images.
            sizes: B sizes (H, W).
            scores: keep the probabilities (K, H, W) as float32.

        Raises:
            KirieError: when the logits are not finite, which no label could tell.
        """
        maps = []
        for logits, size in zip(raw.logits.detach(), sizes, strict=True):
            if not bool(torch.isfinite(logits.sum(dtype=torch.float32))):
                raise KirieError(
                    "The model gives NaN or infinity for this picture: its weights are broken, or too large for the "
                    "number format."
                )
            logits = logits.float()
            if scores or self.binary or same(logits.shape[-2:], size):
                # Channels last is several times as fast here; other runtimes give the channels first.
                logits = resized(logits[None].contiguous(memory_format=torch.channels_last), size)[0]
                labels = logits[0] > 0 if self.binary else logits.argmax(0)
            else:
                labels = largest_at(logits, size)
            numbers: Any = labels.cpu().numpy().astype(np.uint8 if self.classes.void == 255 else np.int32)
            maps.append(SemanticMap(numbers, self.classes, _probabilities(logits) if scores else None))
        return maps


def full_size(
    logits: Tensor, padded_size: Sequence[int], size: Sequence[int], *, align_corners: bool = False
) -> Tensor:
    """Logits that cover a padded picture, resized to it and cropped to the picture itself.

    They come back as they are, at low resolution, where nothing was padded and the corners are not aligned: `loss` and
    `decode` then resize them rightly themselves, once and to the size that is wanted.

    Args:
        logits: (B, K, h, w), covering the padded picture exactly.
        padded_size: (H', W') of what the network was given.
        size: (H, W) of the picture before rows were added at the bottom and columns at the right.
        align_corners: whether the centres of the corner pixels lie on each other.

    Returns:
        (B, K, H, W), or (B, K, h, w) where that covers the picture exactly.
    """
    if not align_corners and same(padded_size, size):
        return logits
    return resized(logits, padded_size, align_corners=align_corners)[..., : size[0], : size[1]]


def resized(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """`x` (B, C, h, w) at another size (H, W), bilinearly."""
    if same(x.shape[-2:], size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def _probabilities(logits: Tensor) -> Any:
    if logits.shape[0] == 1:
        foreground = logits.sigmoid()
        return torch.cat([1 - foreground, foreground]).cpu().numpy()
    return logits.softmax(0).cpu().numpy()


def _stack(truths: Sequence[Result]) -> Tensor:
    wrong = {type(truth).__name__ for truth in truths if not isinstance(truth, SemanticMap)}
    if wrong:
        raise KirieError(f"A semantic model learns from SemanticMap truths, got {', '.join(sorted(wrong))}.")
    maps = [truth.labels for truth in truths if isinstance(truth, SemanticMap)]
    sizes = {array.shape for array in maps}
    if len(sizes) > 1:
        raise KirieError(f"The truths of a batch must have one size, got {sorted(sizes)}.")
    return torch.from_numpy(np.stack(maps))
