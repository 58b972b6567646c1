r"""Semantic FPN: Kirillov, Girshick, He and Dollar, "Panoptic Feature Pyramid Networks", CVPR 2019 (arXiv 1901.02446).

    image -- encoder -- 1/4  -- 1 x 1 --(+)-- 3 x 3 -- conv ---------------------------.
                         |               ^ x 2                                         |
                        1/8  -- 1 x 1 --(+)-- 3 x 3 -- conv, x 2 ----------------------|
                         |               ^ x 2                                        (+)-- 1 x 1, x 4 -- logits
                        1/16 -- 1 x 1 --(+)-- 3 x 3 -- conv, x 2, conv, x 2 -----------|
                         |               ^ x 2                                         |
                        1/32 -- 1 x 1 ---+--- 3 x 3 -- conv, x 2, conv, x 2, conv, x 2-'

This is the network of Detectron2 (`configs/Misc/semantic_R_50_FPN_1x.yaml`), and takes its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.contract import Frame
from kirie.models.parts.checks import check_pixels, check_whole
from kirie.models.parts.encoder import Encoder, build_encoder
from kirie.models.parts.fpn import FPN, SemanticFPNHead, covering
from kirie.models.parts.semantic import SemanticModel, SemanticRaw
from kirie.models.parts.sizes import padded

FINEST = 4  # the stride of the pyramid's first map; what an encoder has above that is not used


class SemanticFPN(SemanticModel):
    """Semantic FPN for any number of channels and classes and any picture size, on any timm encoder.

    Args:
        in_channels: C of the images.
        classes: the classes, or how many (1: foreground against background with a single logit).
        encoder: a timm architecture.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`; Detectron2's ResNets have {"stride_first": True, "frozen_norm":
            True}.
        channels: of the pyramid's maps.
        width: channels of the head's convolutions, each followed by group norm.
        mean: per channel, taken off images in [0, 1]; None for what the encoder expects.
        std: per channel, above 0, what they are then divided by; None for what the encoder expects.
        binary: two classes with one logit; True when `classes` is 1.

    Raises:
        KirieError: when an argument is out of range, or the encoder or its weights cannot be had.
    """

    frame_fill = "mean"
    advice = "A light head with fine maps on any encoder: much cheaper at large sizes than dilated encoders."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        channels: int = 256,
        width: int = 128,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        binary: bool | None = None,
    ) -> None:
        check_whole("channels", channels, 1, 4096)
        check_whole("width", width, 1, 4096)
        check_pixels(mean, std)
        body = build_encoder(encoder, in_channels, encoder_options, weights=encoder_weights)
        arguments = {
            "encoder": encoder, "encoder_options": body.options, "channels": channels, "width": width,
            "mean": mean, "std": std,
        }  # fmt: skip
        own = {"mean": body.mean if mean is None else mean, "std": body.std if std is None else std}
        super().__init__(in_channels, classes, arguments, binary=binary, **own)
        self.encoder: Encoder = body
        self.skipped_maps = sum(1 for stride in body.strides if stride < FINEST)
        strides = body.strides[self.skipped_maps :]
        if not strides:
            raise KirieError(f"{encoder!r} has no maps from stride {FINEST} on, of which the pyramid is made.")
        self.fpn = FPN(body.channels[self.skipped_maps :], channels)
        self.head = SemanticFPNHead(channels, strides, self.logit_channels, width)

    @property
    def frame(self) -> Frame:
        """See `SegmentationModel.frame`."""
        return Frame(self.encoder.strides[-1], least=2 * self.encoder.strides[-1])

    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits (B, K, H, W) for images (B, C, H, W) in [0, 1] of any size.

        They are at the picture's size since the reference resizes twice where another size is asked for: to the padded
        picture here, to the size asked for in `decode`.
        """
        height, width = images.shape[-2:]
        x = padded(self.normalise(images), self.encoder.strides[-1])  # with the mean colour, as in the reference
        logits = self.head(self.fpn(self.encoder(x)[self.skipped_maps :]))
        return SemanticRaw(covering(logits, self.encoder.strides[self.skipped_maps], (height, width)))
