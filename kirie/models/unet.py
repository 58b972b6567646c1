r"""U-Net: Ronneberger, Fischer and Brox, "Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.

    image --[2 conv]------------------------ skip ------------------------[2 conv]-- 1x1 -- logits
                 \ pool                                                  up /
                  [2 conv]------------------ skip ------------------[2 conv]
                        \ pool                                   up /
                         ...            [2 conv]            ...

With the defaults it is the network of the common PyTorch releases (same-size convolutions with batch norm), and takes
their weights; `valid=True` gives the paper's own form, in which 572 x 572 pixels become 388 x 388.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.contract import Frame
from kirie.models.parts.checks import check_flag, check_whole
from kirie.models.parts.encoder import Encoder, build_encoder, padded
from kirie.models.parts.semantic import SemanticModel, SemanticRaw
from kirie.models.parts.sizes import same

MAX_DEPTH = 8
GROUP = 8  # channels that share one mean and deviation in group norm
NORMS = ("batch", "group", "none")


def _norm(kind: str, channels: int) -> list[nn.Module]:
    """What follows a convolution of so many channels: nothing for "none"."""
    if kind == "none":
        return []
    if kind == "batch":
        return [nn.BatchNorm2d(channels)]
    return [nn.GroupNorm(math.gcd(channels, max(1, channels // GROUP)), channels)]


class DoubleConv(nn.Sequential):
    """Two 3 x 3 convolutions, each followed by a norm of `NORMS` and ReLU; (B, C, H, W) keeps H, W."""

    def __init__(
        self, in_channels: int, channels: int, middle: int | None = None, *, bias: bool, valid: bool, norm: str
    ) -> None:
        middle = middle or channels
        layers: list[nn.Module] = []
        for before, after in ((in_channels, middle), (middle, channels)):
            layers.append(nn.Conv2d(before, after, 3, padding=0 if valid else 1, bias=bias))
            layers += _norm(norm, after)
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Up(nn.Module):
    """One step up: twice the size, joined with the skip, two convolutions."""

    def __init__(
        self, in_channels: int, skip: int, channels: int, *, up: str, bias: bool, valid: bool, norm: str
    ) -> None:
        super().__init__()
        self.up: nn.Module
        middle = None
        if up == "transposed":
            self.up = nn.ConvTranspose2d(in_channels, max(in_channels // 2, 1), 2, stride=2)
            in_channels = max(in_channels // 2, 1)
        else:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            middle = (in_channels + skip) // 2
        self.conv = DoubleConv(in_channels + skip, channels, middle, bias=bias, valid=valid, norm=norm)
        self.valid, self.joined = valid, skip > 0

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """The joined and convolved maps for `x` (B, C, h, w) and its skip (B, S, H, W), H about 2 h.

        Without skip connections the skip only says the size.
        """
        x = self.up(x)
        if skip is not None:
            if self.valid:
                skip = _fitted(skip, x)  # the paper crops the skip
            else:
                x = _fitted(x, skip)  # the releases pad what comes up
            if self.joined:
                x = torch.cat([skip, x], 1)
        out: Tensor = self.conv(x)
        return out


class UNet(SemanticModel):
    """U-Net for any number of channels and classes, any width and depth, any picture size, on any timm encoder.

    Args:
        in_channels: C of the images.
        classes: the classes, or how many (1: foreground against background with a single logit).
        width: channels at full resolution, doubled at each step down (None: 64, or 16 with an encoder).
        depth: steps down (None: 4); with an encoder, how many of its stages are used (None: all).
        up: "transposed" (learned 2 x 2 transposed convolution) or "bilinear".
        bias: whether the 3 x 3 convolutions have biases (a norm makes them superfluous, some releases have them).
        norm: what follows each 3 x 3 convolution: "batch" norm; "group" norm of 8 channels each (Wu and He, ECCV 2018),
            which sees a picture alone and so suits pictures that differ much, and small batches; or "none", as in the
            paper.
        valid: the paper's convolutions without padding. Pictures are mirrored outwards first, so that the logits
            cover the whole picture; `unpadded` gives the bare 572 -> 388 form.
        skip: whether the skip connections are there; without them it is the plain encoder-decoder that the U-Net is
            compared with.
        standardise: bring each picture to mean 0 and deviation 1 by its own pixels (nnU-Net's z-score). Worth it where
            pictures differ much in light and contrast, as those of several microscopes do.
        encoder: a timm architecture in place of the plain contracting path, or None.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`, such as {"frozen_stages": 1}.
        binary: two classes with one logit; True when `classes` is 1.

    Raises:
        KirieError: when an argument is out of range or does not fit another.
    """

    advice = "Few pictures and exact outlines, as in microscopy and medicine; learns well from nothing, but is heavy."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        width: int | None = None,
        depth: int | None = None,
        up: str = "transposed",
        bias: bool = True,
        norm: str = "batch",
        valid: bool = False,
        skip: bool = True,
        standardise: bool = False,
        encoder: str | None = None,
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        binary: bool | None = None,
    ) -> None:
        width = width if width is not None else (64 if encoder is None else 16)
        arguments = {
            "width": width, "depth": depth, "up": up, "bias": bias, "norm": norm, "valid": valid, "skip": skip,
            "standardise": standardise, "encoder": encoder, "encoder_options": encoder_options,
        }  # fmt: skip
        _check(arguments)
        body = None
        if encoder is not None:
            body = build_encoder(encoder, in_channels, encoder_options, stages=depth, weights=encoder_weights)
            arguments["encoder_options"] = body.options
        mean, std = (None, None) if body is None else (body.mean, body.std)
        super().__init__(in_channels, classes, arguments, binary=binary, mean=mean, std=std)
        options: dict[str, Any] = {"bias": bias, "valid": valid, "norm": norm}
        self.valid, self.standardise = valid, standardise
        self.encoder: Encoder | None = body
        if body is None:
            widths = [width * 2**level for level in range((4 if depth is None else depth) + 1)]
            ins = [in_channels, *widths[:-1]]
            if up == "bilinear":  # nothing halves the channels on the way up, so the lowest level has half
                widths[-1] //= 2
            self.down = nn.ModuleList(DoubleConv(i, o, **options) for i, o in zip(ins, widths, strict=True))
            skips = widths[-2::-1]  # deepest first
            outs = [s // 2 if up == "bilinear" else s for s in skips[:-1]] + skips[-1:]
            self.smallest, self.divisor = 2 ** len(widths), 1
        else:
            widths = body.channels
            steps_without_skip = body.strides[0].bit_length() - 1  # from the finest feature map to full resolution
            skips = widths[-2::-1] + [0] * steps_without_skip
            outs = [width * 2**level for level in range(len(skips))][::-1]
            self.smallest, self.divisor = 2 * body.strides[-1], body.strides[-1]
        steps = zip(pairwise([widths[-1], *outs]), skips if skip else [0] * len(skips), strict=True)
        self.up = nn.ModuleList(Up(i, s, o, up=up, **options) for (i, o), s in steps)
        self.head = nn.Conv2d(outs[-1], self.logit_channels, 1)

    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits (B, K, H, W) for images (B, C, H, W) in [0, 1] of any size."""
        height, width = images.shape[-2:]
        x = self.normalise(images)
        if self.standardise:
            x = _standardised(x)
        if self.valid:
            x = _mirrored(x, len(self.down) - 1)
        else:
            x = padded(x, self.smallest, self.divisor)
        logits = self.unpadded(x)
        if self.valid:
            logits = _centre(logits, height, width)
        return SemanticRaw(logits[..., :height, :width])

    @property
    def frame(self) -> Frame:
        """See `SegmentationModel.frame`."""
        return Frame() if self.valid else Frame(self.divisor, least=self.smallest)

    def network(self, images: Tensor) -> dict[str, Tensor]:
        """See `SemanticModel.network`.

        Raises:
            KirieError: when the valid form is to be exported: how far it mirrors a picture outwards goes by its size.
        """
        if self.valid and torch.compiler.is_exporting():
            raise KirieError("A U-Net of the valid form (valid=True) cannot be exported; train one with valid=False.")
        return super().network(images)

    def unpadded(self, x: Tensor) -> Tensor:
        """The U itself: logits for normalised images (B, C, H, W), without padding before or cropping after."""
        if self.encoder is None:
            features = [self.down[0](x)]
            for block in list(self.down)[1:]:
                features.append(block(F.max_pool2d(features[-1], 2)))
        else:
            features = self.encoder(x)
        x, *skips = features[::-1]
        for index, block in enumerate(self.up):
            x = block(x, skips[index] if index < len(skips) else None)
        logits: Tensor = self.head(x)
        return logits


def _check(arguments: Mapping[str, Any]) -> None:
    for name in ("bias", "valid", "skip", "standardise"):
        check_flag(name, arguments[name])
    if arguments["norm"] not in NORMS:
        raise KirieError(f"norm must be {', '.join(NORMS[:-1])} or {NORMS[-1]}, got {arguments['norm']!r:.80}.")
    check_whole("width", arguments["width"], 1, 1024)
    if arguments["depth"] is not None:
        check_whole("depth", arguments["depth"], 1, MAX_DEPTH)
    if arguments["up"] not in ("transposed", "bilinear"):
        raise KirieError(f'up must be "transposed" or "bilinear", got {arguments["up"]!r:.80}.')
    if arguments["valid"] and arguments["encoder"] is not None:
        raise KirieError("valid=True is the paper's plain network: it cannot have an encoder.")
    if arguments["encoder_options"] is not None and arguments["encoder"] is None:
        raise KirieError("encoder_options are those of a timm encoder: name it by `encoder`.")


def _standardised(x: Tensor) -> Tensor:
    """`x` (B, C, H, W) with each picture's own mean taken off and divided by its own deviation."""
    deviation, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (deviation + 0.01)  # an empty picture stays flat: its noise is not blown up


def _fitted(x: Tensor, like: Tensor) -> Tensor:
    """`x` (B, C, h, w) padded with zeros or cropped, about its centre, to the height and width of `like`."""
    down, right = like.shape[-2] - x.shape[-2], like.shape[-1] - x.shape[-1]
    if same((down, right), (0, 0)):
        return x
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))


def _centre(x: Tensor, height: int, width: int) -> Tensor:
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def _mirrored(x: Tensor, depth: int) -> Tensor:
    """`x` (B, C, H, W) mirrored outwards so far that unpadded convolutions give at least H x W, at an exact size."""
    for axis in (-2, -1):
        size = x.shape[axis]
        wanted = _valid_input(size, depth)
        lost = wanted - _valid_output(wanted, depth)
        # Half of what is lost lies before the picture; a picture may be smaller than that, so the mirror repeats.
        before = lost // 2 + (_valid_output(wanted, depth) - size) // 2
        place = torch.arange(wanted, device=x.device) - before
        period = max(2 * (size - 1), 1)
        place = place.remainder(period)
        x = x.index_select(axis, torch.where(place >= size, period - place, place))
    return x


def _valid_output(size: int, depth: int) -> int:
    """Pixels that come out of the unpadded network for `size` pixels going in (572 -> 388 at depth 4)."""
    for _ in range(depth):
        size = (size - 4) // 2
    size -= 4
    for _ in range(depth):
        size = size * 2 - 4
    return size


def _valid_input(size: int, depth: int) -> int:
    """The smallest input whose every pooling divides evenly and whose output has at least `size` pixels."""
    lowest = max(-(-(size + 4 * (2**depth - 1)) // 2**depth), 1)  # size after the lowest convolutions
    size = lowest + 4
    for _ in range(depth):
        size = size * 2 + 4
    return size
