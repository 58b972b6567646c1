r"""LR-ASPP: Howard et al., "Searching for MobileNetV3", ICCV 2019, section 6.4; a small head for small encoders.

    image -- MobileNetV3 --.-- (1/16) --.-- 1x1, norm, ReLU ---------- x --- enlarged --- 1x1 --.
                            \            \                             |                         + -- logits at 1/8
                             \            '-- pooling, 1x1, sigmoid ---'                         |
                              '-- (1/8) --------------------------------------------------- 1x1 -'

With its defaults it is torchvision's network up to where torchvision reads the maps of its MobileNetV3 from and how it
dilates it, which are `encoder_options` (dilate_first, first_blocks, norm_eps 0.001).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.models.parts.checks import check_whole
from kirie.models.parts.conv import ConvNorm
from kirie.models.parts.encoder import Encoder, build_encoder
from kirie.models.parts.semantic import SemanticModel, SemanticRaw, full_size


class LRASPP(SemanticModel):
    """LR-ASPP for any number of channels and classes, any picture size, on any timm encoder that can be dilated.

    Args:
        in_channels: C of the images.
        classes: the classes, or how many (1: foreground against background with a single logit).
        encoder: a timm architecture with a map at stride 8 before its last.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`, such as {"frozen_norm": true}.
        output_stride: 8, 16 or 32, of the encoder's last map; half of it costs about four times the work there.
        width: channels of the head.
        binary: two classes with one logit; True when `classes` is 1.

    Raises:
        KirieError: when an argument is out of range or does not fit the encoder.
    """

    advice = "Small computers and live video: few operations, and coarser edges."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        encoder: str = "mobilenetv3_large_100",
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        output_stride: int = 16,
        width: int = 128,
        binary: bool | None = None,
    ) -> None:
        check_whole("width", width, 1, 4096)
        body = build_encoder(
            encoder, in_channels, encoder_options, weights=encoder_weights, output_stride=output_stride
        )
        arguments = {
            "encoder": encoder, "encoder_options": body.options, "output_stride": output_stride, "width": width,
        }  # fmt: skip
        super().__init__(in_channels, classes, arguments, binary=binary, mean=body.mean, std=body.std)
        self.encoder: Encoder = body
        self.low_index = body.at_stride(8)
        low, high = body.channels[self.low_index], body.channels[-1]
        self.project = ConvNorm(high, width)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, width, 1, bias=False), nn.Sigmoid())
        self.low_head = nn.Conv2d(low, self.logit_channels, 1)
        self.high_head = nn.Conv2d(width, self.logit_channels, 1)

    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits (B, K, ceil(H / 8), ceil(W / 8)) for images (B, C, H, W) in [0, 1].

        They are (B, K, H, W) where the encoder asks for a picture of other sides.
        """
        x = self.encoder.padded(self.normalise(images))
        maps = self.encoder(x)
        low, high = maps[self.low_index], maps[-1]
        weighted = self.project(high) * self.scale(high)
        enlarged = F.interpolate(weighted, size=low.shape[-2:], mode="bilinear", align_corners=False)
        logits = self.low_head(low) + self.high_head(enlarged)
        return SemanticRaw(full_size(logits, x.shape[-2:], images.shape[-2:]))
