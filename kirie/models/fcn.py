r"""FCN: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.

    image -- dilated encoder (1/8) -- 3x3 -- 1x1 -- logits at 1/8
                     |
                 stage before -- 3x3 -- 1x1 -- auxiliary logits at 1/8

With its defaults it is torchvision's network: in place of the paper's skips from finer maps the encoder is dilated, so
that its last map keeps 1/8 of the size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kirie.classes import Classes
from kirie.models.parts.checks import check_dropout, check_flag
from kirie.models.parts.conv import FCNHead
from kirie.models.parts.encoder import Encoder, build_encoder
from kirie.models.parts.semantic import SemanticModel, SemanticRaw, full_size


class FCN(SemanticModel):
    """FCN for any number of channels and classes, any picture size, on any timm encoder.

    Args:
        in_channels: C of the images.
        classes: the classes, or how many (1: foreground against background with a single logit).
        encoder: a timm architecture.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`, such as {"frozen_norm": true}.
        output_stride: 8, 16 or 32, of the encoder's last map; half of it costs about four times the work there.
        dropout: probability before the classifiers.
        auxiliary: whether a second head learns from the map before the last as well.
        binary: two classes with one logit; True when `classes` is 1.

    Raises:
        KirieError: when an argument is out of range or does not fit the encoder.
    """

    advice = "The plain baseline on a dilated encoder, to compare with: nearly as costly as DeepLabV3, less accurate."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        output_stride: int = 8,
        dropout: float = 0.1,
        auxiliary: bool = True,
        binary: bool | None = None,
    ) -> None:
        check_flag("auxiliary", auxiliary)
        check_dropout(dropout)
        body = build_encoder(
            encoder, in_channels, encoder_options, weights=encoder_weights, output_stride=output_stride
        )
        arguments = {
            "encoder": encoder, "encoder_options": body.options, "output_stride": output_stride, "dropout": dropout,
            "auxiliary": auxiliary,
        }  # fmt: skip
        super().__init__(in_channels, classes, arguments, binary=binary, mean=body.mean, std=body.std)
        self.encoder: Encoder = body

        def head(channels: int) -> FCNHead:
            return FCNHead(channels, max(channels // 4, 1), self.logit_channels, dropout=dropout)

        self.head = head(body.channels[-1])
        self.auxiliary = head(body.channels[-2]) if auxiliary else None

    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits for images (B, C, H, W) in [0, 1]: (B, K, ceil(H / s), ceil(W / s)) at output stride s.

        They are (B, K, H, W) where the encoder asks for a picture of other sides.
        """
        height, width = images.shape[-2:]
        maps = self.encoder(self.encoder.padded(self.normalise(images)))
        logits = self.covering(self.head(maps[-1]), (height, width))
        return SemanticRaw(logits, None if self.auxiliary is None else maps[-2])

    def covering(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits that cover the picture without what the encoder asked to add to it; see `SemanticModel`."""
        return full_size(logits, self.encoder.padded_size(size), size)
