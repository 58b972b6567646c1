r"""DeepLabV3 and DeepLabV3+, which look at one place through convolutions of several rates.

DeepLabV3: Chen, Papandreou, Schroff and Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.

    image -- dilated encoder (1/8) --+-- 1x1 ------------.
                     |               +-- 3x3, rate 12 ---|
                 stage before        +-- 3x3, rate 24 ---+-- 1x1 -- 3x3 -- 1x1 -- logits at 1/8
                     |               +-- 3x3, rate 36 ---|
              FCN head, for the      '-- image pooling --'
              auxiliary loss

DeepLabV3+: Chen, Zhu, Papandreou, Schroff and Adam, "Encoder-Decoder with Atrous Separable Convolution for Semantic
Image Segmentation", ECCV 2018.

    image -- encoder --.-- (1/16) -- the same five branches, rates 6, 12, 18 -- enlarged --.
                        \                                                                   +-- 3x3 -- 1x1 -- logits
                         '-- (1/4) -- 1x1 to 48 channels ----------------------------------'           at 1/4

DeepLabV3 with its defaults is torchvision's network; DeepLabV3+ with its defaults is that of VainF's
DeepLabV3Plus-Pytorch (one 3 x 3 convolution in the decoder, where the paper found two a little better).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.parts.checks import check_dropout, check_flag, check_whole
from kirie.models.parts.conv import BatchNorm, ConvNorm, FCNHead
from kirie.models.parts.encoder import Encoder, build_encoder
from kirie.models.parts.semantic import SemanticModel, SemanticRaw, full_size

MAX_RATE = 512


class SeparableConvNorm(nn.Sequential):
    """A 3 x 3 convolution of each channel by itself, a 1 x 1 convolution across them, batch norm and ReLU.

    (B, in_channels, h, w) -> (B, channels, h, w)
    """

    def __init__(self, in_channels: int, channels: int, *, dilation: int = 1) -> None:
        depthwise = nn.Conv2d(
            in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
        )
        super().__init__(
            nn.Sequential(depthwise, nn.Conv2d(in_channels, channels, 1, bias=False)),
            BatchNorm(channels),
            nn.ReLU(inplace=True),
        )


class ImagePooling(nn.Module):
    """The mean of the whole map, convolved, at every place of it: (B, in_channels, h, w) -> (B, channels, h, w)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """One value per channel, repeated."""
        pooled: Tensor = self.conv(F.adaptive_avg_pool2d(x, 1))
        return pooled.expand(-1, -1, *x.shape[-2:])  # what enlarging a map of one value gives


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1 x 1 convolution, one of 3 x 3 per rate and image pooling, side by side.

    Args:
        in_channels: C of the map.
        width: channels of each branch and of the result.
        rates: dilations of the 3 x 3 convolutions.
        separable: whether those are depthwise separable.
        dropout: probability at the end.
    """

    def __init__(self, in_channels: int, width: int, rates: Sequence[int], *, separable: bool, dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList([
            ConvNorm(in_channels, width),
            *(_spatial(in_channels, width, rate, separable=separable) for rate in rates),
            ImagePooling(in_channels, width),
        ])  # fmt: skip
        self.project = nn.Sequential(ConvNorm((len(rates) + 2) * width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) for a map (B, C, h, w)."""
        out: Tensor = self.project(torch.cat([branch(x) for branch in self.branches], 1))
        return out


class DeepLabV3(SemanticModel):
    """DeepLabV3 for any number of channels and classes, any picture size, on any timm encoder that can be dilated.

    Args:
        in_channels: C of the images.
        classes: the classes, or how many (1: foreground against background with a single logit).
        encoder: a timm architecture.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`, such as {"frozen_norm": true}. With {"pad_first": true} the logits
            may have a row and a column fewer than `forward` says, spread over the picture as in VainF's release.
        output_stride: 8, 16 or 32, of the encoder's last map; half of it costs about four times the work there.
        rates: of the 3 x 3 branches; None: 12, 24 and 36 at output stride 8, and in proportion at others.
        width: channels of each branch and of the head.
        separable: whether the 3 x 3 convolutions after the encoder are depthwise separable.
        dropout: probability after the branches are joined.
        auxiliary: whether an FCN head learns from an earlier map as well.
        auxiliary_stride: it learns from the first map at this stride; None: from the map before the last, whatever its
            stride.
        binary: two classes with one logit; True when `classes` is 1.

    Raises:
        KirieError: when an argument is out of range or does not fit the encoder.
    """

    advice = "Photographs with objects of many sizes, when ready weights for VOC's classes matter more than time."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        output_stride: int = 8,
        rates: Sequence[int] | None = None,
        width: int = 256,
        separable: bool = False,
        dropout: float = 0.5,
        auxiliary: bool = True,
        auxiliary_stride: int | None = None,
        binary: bool | None = None,
    ) -> None:
        rates = _checked(rates, width, dropout, {"separable": separable, "auxiliary": auxiliary})
        body = build_encoder(
            encoder, in_channels, encoder_options, exact=False, weights=encoder_weights, output_stride=output_stride
        )
        arguments = {
            "encoder": encoder, "encoder_options": body.options, "output_stride": output_stride, "rates": rates,
            "width": width, "separable": separable, "dropout": dropout, "auxiliary": auxiliary,
            "auxiliary_stride": auxiliary_stride,
        }  # fmt: skip
        super().__init__(in_channels, classes, arguments, binary=binary, mean=body.mean, std=body.std)
        self.encoder: Encoder = body
        last, rates = body.channels[-1], rates or _rates(output_stride)
        self.aspp = ASPP(last, width, rates, separable=separable, dropout=dropout)
        self.head = nn.Sequential(
            _spatial(width, width, 1, separable=separable), nn.Conv2d(width, self.logit_channels, 1)
        )
        self.auxiliary_index = -2 if auxiliary_stride is None else body.at_stride(auxiliary_stride)
        before = body.channels[self.auxiliary_index]
        self.auxiliary = FCNHead(before, max(before // 4, 1), self.logit_channels) if auxiliary else None

    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits for images (B, C, H, W) in [0, 1]: (B, K, ceil(H / s), ceil(W / s)) at output stride s.

        They are (B, K, H, W) where the encoder asks for a picture of other sides.
        """
        height, width = images.shape[-2:]
        maps = self.encoder(self.encoder.padded(self.normalise(images)))
        logits = self.covering(self.head(self.aspp(maps[-1])), (height, width))
        return SemanticRaw(logits, None if self.auxiliary is None else maps[self.auxiliary_index])

    def covering(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits that cover the picture without what the encoder asked to add to it; see `SemanticModel`."""
        return full_size(logits, self.encoder.padded_size(size), size)


class DeepLabV3Plus(SemanticModel):
    """DeepLabV3+ for any number of channels and classes, any picture size, on any timm encoder that can be dilated.

    Args:
        in_channels: C of the images.
        classes: the classes, or how many (1: foreground against background with a single logit).
        encoder: a timm architecture with a map at stride 4.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`, such as {"frozen_norm": true}. With {"pad_first": true} the logits
            may have a row and a column fewer than `forward` says, spread over the picture as in VainF's release.
        output_stride: 8, 16 or 32, of the encoder's last map; half of it costs about four times the work there.
        rates: of the 3 x 3 branches; None: 6, 12 and 18 at output stride 16, and in proportion at others.
        width: channels of each branch and of the decoder.
        low_width: channels of the low-level map once it is reduced.
        separable: whether the 3 x 3 convolutions after the encoder are depthwise separable.
        dropout: probability after the branches are joined.
        binary: two classes with one logit; True when `classes` is 1.

    Raises:
        KirieError: when an argument is out of range or does not fit the encoder.
    """

    advice = "A first choice for photographs and streets: sharper edges than DeepLabV3 at a third of its operations."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        output_stride: int = 16,
        rates: Sequence[int] | None = None,
        width: int = 256,
        low_width: int = 48,
        separable: bool = False,
        dropout: float = 0.1,
        binary: bool | None = None,
    ) -> None:
        rates = _checked(rates, width, dropout, {"separable": separable})
        check_whole("low_width", low_width, 1, 4096)
        body = build_encoder(
            encoder, in_channels, encoder_options, exact=False, weights=encoder_weights, output_stride=output_stride
        )
        arguments = {
            "encoder": encoder, "encoder_options": body.options, "output_stride": output_stride, "rates": rates,
            "width": width, "low_width": low_width, "separable": separable, "dropout": dropout,
        }  # fmt: skip
        super().__init__(in_channels, classes, arguments, binary=binary, mean=body.mean, std=body.std)
        self.encoder: Encoder = body
        self.low_index = body.at_stride(4)
        self.low = ConvNorm(body.channels[self.low_index], low_width)
        rates = rates or _rates(output_stride)
        self.aspp = ASPP(body.channels[-1], width, rates, separable=separable, dropout=dropout)
        self.head = nn.Sequential(
            _spatial(low_width + width, width, 1, separable=separable), nn.Conv2d(width, self.logit_channels, 1)
        )

    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits (B, K, ceil(H / 4), ceil(W / 4)) for images (B, C, H, W) in [0, 1].

        They are (B, K, H, W) where the encoder asks for a picture of other sides.
        """
        x = self.encoder.padded(self.normalise(images))
        maps = self.encoder(x)
        low = self.low(maps[self.low_index])
        high = F.interpolate(self.aspp(maps[-1]), size=low.shape[-2:], mode="bilinear", align_corners=False)
        logits = self.head(torch.cat([low, high], 1))
        return SemanticRaw(full_size(logits, x.shape[-2:], images.shape[-2:]))


def _spatial(in_channels: int, channels: int, rate: int, *, separable: bool) -> nn.Module:
    """A 3 x 3 convolution of a rate, with norm and ReLU."""
    if separable:
        return SeparableConvNorm(in_channels, channels, dilation=rate)
    return ConvNorm(in_channels, channels, 3, dilation=rate)


def _rates(output_stride: int) -> tuple[int, ...]:
    """The papers' rates, which cover the same pixels at every output stride: 12, 24, 36 at 8."""
    return tuple(96 // output_stride * times for times in (1, 2, 3))


def _checked(rates: object, width: object, dropout: object, flags: Mapping[str, object]) -> tuple[int, ...] | None:
    """The rates as they are kept, once all arguments are of the right kind and range."""
    for name, value in flags.items():
        check_flag(name, value)
    check_whole("width", width, 1, 4096)
    check_dropout(dropout)
    if rates is None:
        return None
    sound = isinstance(rates, list | tuple) and 1 <= len(rates) <= 16
    if not sound or not all(type(rate) is int and 1 <= rate <= MAX_RATE for rate in rates):  # type: ignore[attr-defined]
        raise KirieError(f"rates must be 1 to 16 whole numbers from 1 to {MAX_RATE}, got {rates!r:.80}.")
    return tuple(rates)  # type: ignore[arg-type]
