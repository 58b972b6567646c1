"""The feature pyramid of Lin et al. (CVPR 2017) and the semantic head over it of Kirillov et al. (CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kirie.errors import KirieError
from kirie.models.parts.conv import ConvNorm


class FPN(nn.Module):
    """Feature pyramid: maps of one width at all strides, each knowing what the coarser ones saw.

    Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017 (arXiv 1612.03144), figure 3: 1 x 1
    convolutions bring all maps to one width; from the coarsest on, each is enlarged by nearest neighbour and added to
    the next finer one; 3 x 3 convolutions smooth the sums.

    Args:
        in_channels: of the encoder's maps, finest first; any number of them.
        channels: C of each map of the pyramid.
        extra: how many coarser maps are added, each every second pixel of the one before (Mask R-CNN has one).
        norm: whether each convolution has batch norm in place of a bias.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, *, extra: int = 0, norm: bool = False) -> None:
        super().__init__()

        def convolution(before: int, kernel: int) -> nn.Module:
            if norm:
                return ConvNorm(before, channels, kernel, act=False)
            return nn.Conv2d(before, channels, kernel, padding=kernel // 2)

        self.laterals = nn.ModuleList(convolution(before, 1) for before in in_channels)
        self.outputs = nn.ModuleList(convolution(channels, 3) for _ in in_channels)
        self.extra = extra
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)  # Xavier's, for one side: no ReLU follows
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid (B, C, h_i, w_i), finest first, for maps (B, C_i, h_i, w_i), finest first, then the extra ones.

        Sizes need not divide evenly: a coarser map is enlarged to the size of the next finer one.
        """
        merged: Tensor | None = None
        maps: list[Tensor] = []
        for x, lateral, output in zip(features[::-1], self.laterals[::-1], self.outputs[::-1], strict=True):
            side = lateral(x)
            merged = side if merged is None else side + F.interpolate(merged, side.shape[-2:], mode="nearest")
            maps.insert(0, output(merged))
        for _ in range(self.extra):
            maps.append(F.max_pool2d(maps[-1], 1, stride=2))
        return maps


class SemanticBranch(nn.Sequential):
    """Brings one map of the pyramid to the finest stride: 3 x 3 convolution, group norm, ReLU and twice the size.

    (B, in_channels, h, w) -> (B, channels, h * 2 ** doublings, w * 2 ** doublings). Without doublings it is one
    convolution that keeps the size. There are 32 groups, or as many as divide `channels` where 32 do not.
    """

    def __init__(self, in_channels: int, channels: int, doublings: int) -> None:
        super().__init__()
        for step in range(max(doublings, 1)):
            convolution = nn.Conv2d(channels if step else in_channels, channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            norm = nn.GroupNorm(math.gcd(32, channels), channels)
            self.append(nn.Sequential(convolution, norm, nn.ReLU(inplace=True)))
            if doublings:
                self.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))


class SemanticFPNHead(nn.Module):
    """Semantic logits from a feature pyramid.

    Kirillov, Girshick, He and Dollar, "Panoptic Feature Pyramid Networks", CVPR 2019 (arXiv 1901.02446), figure 3: all
    maps are brought to the stride of the finest one step by step, added, and classified by a 1 x 1 convolution.

    Args:
        in_channels: C of the pyramid's maps.
        strides: of the maps, finest first; each a power of two times the first.
        classes: K, or 1 for a single logit.
        width: channels of the branches.

    Raises:
        KirieError: when a stride is no power of two times the finest.
    """

    def __init__(self, in_channels: int, strides: Sequence[int], classes: int, width: int = 128) -> None:
        super().__init__()
        steps = [divmod(stride, strides[0]) for stride in strides]
        if any(rest or times.bit_count() != 1 for times, rest in steps):
            raise KirieError(f"The strides of the pyramid must double from the finest on, got {list(strides)}.")
        self.branches = nn.ModuleList(SemanticBranch(in_channels, width, times.bit_length() - 1) for times, _ in steps)
        self.predictor = nn.Conv2d(width, classes, 1)
        nn.init.kaiming_normal_(self.predictor.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) at the finest map's size for maps (B, C, h_i, w_i), each half as large as the last."""
        first, *others = (branch(x) for branch, x in zip(self.branches, maps, strict=True))
        for other in others:
            first = first + other
        logits: Tensor = self.predictor(first)
        return logits


def covering(logits: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Logits (B, K, H, W) for every pixel of a picture, out of those of the head over the padded picture.

    As in the reference: enlarged to the padded picture, of which the padding is then cut off. Another size than the
    picture's takes a second resize after that.

    Args:
        logits: (B, K, h, w) of `SemanticFPNHead`.
        stride: of the finest map of the pyramid; the padded picture has so many times h rows and w columns.
        size: (H, W) of the picture before rows were added at the bottom and columns at the right.
    """
    height, width = (side * stride for side in logits.shape[-2:])
    full = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return full[..., : size[0], : size[1]]
