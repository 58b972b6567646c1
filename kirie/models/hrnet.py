r"""HRNet: Wang, Sun et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2020.

                            stage 2      stage 3      stage 4
    image - stem - layer1 - [==X] x 1 -- [==X] x 4 -- [==X] x 3 --.
                     1/4  \ [==X] x 1 -- [==X] x 4 -- [==X] x 3 --|  all enlarged to 1/4 and joined,
                               1/8     \ [==X] x 4 -- [==X] x 3 --|  1 x 1 conv, norm, ReLU, 1 x 1 conv
                                           1/16     \ [==X] x 3 --'  -- logits at 1/4
                                                        1/32

The map at 1/4 is kept throughout; each stage adds a branch at half the size and twice the width, and every module ends
in an exchange (X) in which each branch receives the sum of all of them. This is the network of the releases of
HRNet-Semantic-Segmentation (HRNetV2, without OCR), and takes their weights. The body has the names of the ImageNet
releases, which timm has too; timm's own body enlarges by nearest neighbour in its exchanges, the releases for
segmentation bilinearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.parts.checks import check_flag, check_whole
from kirie.models.parts.conv import BatchNorm, ConvNorm
from kirie.models.parts.encoder import load_weights, no_hub, pixel_statistics
from kirie.models.parts.freezing import Freezable
from kirie.models.parts.semantic import SemanticModel, SemanticRaw, full_size, resized

STEM = 64


class Shape(NamedTuple):
    """What one size differs in from another.

    Attributes:
        width: channels of the finest branch; each coarser one has twice as many.
        blocks: residual blocks per branch between two exchanges.
        modules: exchanges in stages 2, 3 and 4.
        layer1: (width, blocks) of the bottlenecks before the branches.
    """

    width: int
    blocks: int = 4
    modules: tuple[int, int, int] = (1, 4, 3)
    layer1: tuple[int, int] = (64, 4)


SIZES = {
    "w18_small_v1": Shape(16, 2, (1, 1, 1), (32, 1)),
    "w18_small_v2": Shape(18, 2, (1, 3, 2), (64, 2)),
    "w18": Shape(18),
    "w32": Shape(32),
    "w48": Shape(48),
}
TIMM = {name: f"hrnet_{name}" for name in SIZES} | {"w18_small_v1": "hrnet_w18_small"}


class Bottleneck(nn.Module):
    """1 x 1 down to `width`, 3 x 3, 1 x 1 up to 4 `width`, plus what came in: (B, C, h, w) -> (B, 4 width, h, w)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = BatchNorm(4 * width)
        self.downsample = ConvNorm(in_channels, 4 * width, act=False) if in_channels != 4 * width else None

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for `x`."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, plus what came in: (B, C, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for `x`."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x
        return F.relu(out, inplace=True)


class Fusion(nn.ModuleList):
    """What one branch receives in an exchange: ReLU of the sum of all branches, each brought to its size and width.

    A coarser branch comes by a 1 x 1 convolution and is enlarged, a finer one by as many 3 x 3 convolutions of stride 2
    as there are steps between them, of which only the last changes the width and has no ReLU.
    """

    def __init__(self, index: int, widths: Sequence[int], *, align_corners: bool) -> None:
        super().__init__()
        self.index, self.align_corners = index, align_corners
        for source, width in enumerate(widths):
            if source == index:
                self.append(nn.Identity())
            elif source > index:
                self.append(ConvNorm(width, widths[index], act=False))
            else:
                steps = [ConvNorm(width, width, 3, stride=2) for _ in range(index - source - 1)]
                self.append(nn.Sequential(*steps, ConvNorm(width, widths[index], 3, stride=2, act=False)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The new map of branch i, (B, C_i, h_i, w_i), for the maps of all branches, finest first."""
        own = maps[self.index]
        total: Tensor | None = None
        for source, (path, x) in enumerate(zip(self, maps, strict=True)):
            term: Tensor = path(x)
            if source > self.index:
                term = resized(term, own.shape[-2:], align_corners=self.align_corners)
            if total is None:
                total = term
            elif total is own:
                total = total + term  # the other fusions still need the branch as it was
            else:
                total += term
        assert total is not None, "an exchange has branches"
        return F.relu(total, inplace=True)


class ExchangeModule(nn.Module):
    """Residual blocks on each branch, then one exchange among all branches."""

    def __init__(self, widths: Sequence[int], blocks: int, *, align_corners: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths)
        self.fuse_layers = nn.ModuleList(Fusion(i, widths, align_corners=align_corners) for i in range(len(widths)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps (B, C_i, h_i, w_i) after the exchange, finest first."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [fuse(maps) for fuse in self.fuse_layers]


class Transition(nn.ModuleList):
    """Opens a new coarsest branch from the coarsest so far; the others pass, but for a change of width."""

    def __init__(self, before: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        for old, new in zip(before, widths, strict=False):
            self.append(nn.Identity() if old == new else ConvNorm(old, new, 3))
        self.append(nn.Sequential(ConvNorm(before[-1], widths[-1], 3, stride=2)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One map more than came in."""
        return [path(x) for path, x in zip(self, [*maps, maps[-1]], strict=True)]


class Body(Freezable):
    """The network without its head: maps at 1/4, 1/8, 1/16 and 1/32 (sizes rounded up), `channels` wide."""

    def __init__(
        self, in_channels: int, shape: Shape, *, align_corners: bool, frozen_norm: bool, frozen_stages: int
    ) -> None:
        super().__init__()
        width, blocks, modules, (middle, bottlenecks) = shape
        self.conv1 = nn.Conv2d(in_channels, STEM, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm(STEM)
        self.conv2 = nn.Conv2d(STEM, STEM, 3, stride=2, padding=1, bias=False)
        self.bn2 = BatchNorm(STEM)
        self.layer1 = nn.Sequential(*(Bottleneck(STEM if i == 0 else 4 * middle, middle) for i in range(bottlenecks)))
        self.channels = [width, 2 * width, 4 * width, 8 * width]
        two, three = self.channels[:2], self.channels[:3]

        def stage(widths: Sequence[int], count: int) -> nn.Sequential:
            return nn.Sequential(*(ExchangeModule(widths, blocks, align_corners=align_corners) for _ in range(count)))

        self.transition1 = Transition([4 * middle], two)
        self.stage2 = stage(two, modules[0])
        self.transition2 = Transition(two, three)
        self.stage3 = stage(three, modules[1])
        self.transition3 = Transition(three, self.channels)
        self.stage4 = stage(self.channels, modules[2])
        frozen = [module for stage in self.levels()[:frozen_stages] for part in stage for module in part.modules()]
        norms = [module for module in self.modules() if isinstance(module, BatchNorm)]
        self.freeze([*frozen, *(norms if frozen_norm else [])])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Four maps (B, C_i, h_i, w_i), finest first, for normalised images (B, C, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        maps = self.stage2(self.transition1([self.layer1(x)]))
        maps = self.stage3(self.transition2(maps))
        out: list[Tensor] = self.stage4(self.transition3(maps))
        return out

    def levels(self) -> list[list[nn.Module]]:
        """The parts of the paper's 4 stages, the stem with the first."""
        return [
            [self.conv1, self.bn1, self.conv2, self.bn2, self.layer1],
            [self.transition1, self.stage2],
            [self.transition2, self.stage3],
            [self.transition3, self.stage4],
        ]


class HRNet(SemanticModel):
    """HRNetV2 for any number of channels and classes and any picture size.

    Args:
        in_channels: C of the images.
        classes: the classes, or how many (1: foreground against background with a single logit).
        size: a row of `SIZES`, the releases' own sizes.
        width: channels of the finest branch; None here and below: as `size` has it.
        blocks: residual blocks per branch between two exchanges.
        modules: exchanges in stages 2, 3 and 4, three numbers.
        layer1: width and number of the bottlenecks before the branches, two numbers.
        align_corners: whether maps are enlarged with the centres of the corner pixels on each other, everywhere; the
            releases differ. The logits are then at the picture's size, otherwise at a quarter of it.
        encoder_weights: of the body: None for random ones, "hub" for timm's ImageNet weights of this size (needs a
            network), or the path of a local `.safetensors` or `.pth` file in timm's layout, which the project's
            ImageNet files share. Used once and not kept in the model file.
        binary: two classes with one logit; True when `classes` is 1.
        frozen_norm: the body's batch norms keep the statistics and factors that they have, also in training.
        frozen_stages: the stem and the first so many of the paper's 4 stages (the bottlenecks are the first) do not
            learn.

    Raises:
        KirieError: when an argument is out of range, or the weights cannot be had or do not fit.
    """

    advice = "Thin and small things in large pictures, such as poles and signs: a fine map is kept throughout."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        size: str = "w18",
        width: int | None = None,
        blocks: int | None = None,
        modules: Sequence[int] | None = None,
        layer1: Sequence[int] | None = None,
        align_corners: bool = False,
        encoder_weights: str | None = None,
        binary: bool | None = None,
        frozen_norm: bool = False,
        frozen_stages: int = 0,
    ) -> None:
        shape = _shape(size, width, blocks, modules, layer1)
        check_flag("align_corners", align_corners)
        check_flag("frozen_norm", frozen_norm)
        check_whole("frozen_stages", frozen_stages, 0, 4)
        arguments = {
            "size": size, "width": width, "blocks": blocks,
            "modules": None if modules is None else shape.modules, "layer1": None if layer1 is None else shape.layer1,
            "align_corners": align_corners, "frozen_norm": frozen_norm, "frozen_stages": frozen_stages,
        }  # fmt: skip
        mean, std = pixel_statistics(in_channels)
        super().__init__(in_channels, classes, arguments, binary=binary, mean=mean, std=std)
        self.align_corners = align_corners
        self.encoder: Body = Body(
            in_channels, shape, align_corners=align_corners, frozen_norm=frozen_norm, frozen_stages=frozen_stages
        )
        joined = sum(self.encoder.channels)
        self.head = nn.Sequential(
            nn.Conv2d(joined, joined, 1),
            BatchNorm(joined),
            nn.ReLU(inplace=True),
            nn.Conv2d(joined, self.logit_channels, 1),
        )
        if encoder_weights == "hub":
            self.encoder.load_state_dict(_from_hub(shape, in_channels, self.encoder.state_dict()))
        elif encoder_weights is not None:
            load_weights(self.encoder, Path(str(encoder_weights)), in_channels)

    @property
    def least_side(self) -> int:
        """See `SegmentationModel.least_side`; from there on the coarsest map has several cells."""
        return 64

    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits (B, K, ceil(H / 4), ceil(W / 4)), with `align_corners` (B, K, H, W), for images (B, C, H, W)."""
        finest, *coarser = self.encoder(self.normalise(images))
        enlarged = [resized(x, finest.shape[-2:], align_corners=self.align_corners) for x in coarser]
        logits = self.head(torch.cat([finest, *enlarged], 1))
        size = images.shape[-2:]
        return SemanticRaw(full_size(logits, size, size, align_corners=self.align_corners))


def _shape(
    size: str, width: int | None, blocks: int | None, modules: Sequence[int] | None, layer1: Sequence[int] | None
) -> Shape:
    """The shape of a size, with what is given in place of its own."""
    if not isinstance(size, str) or size not in SIZES:
        raise KirieError(f"There is no HRNet of size {size!r:.80}. Known: {', '.join(SIZES)}; or give `width`.")
    own = SIZES[size]
    width = own.width if width is None else width
    blocks = own.blocks if blocks is None else blocks
    check_whole("width", width, 1, 512)
    check_whole("blocks", blocks, 1, 32)
    two, three, four = _row("modules", own.modules, modules)
    for count in (two, three, four):
        check_whole("modules", count, 1, 32)
    middle, bottlenecks = _row("layer1", own.layer1, layer1)
    check_whole("layer1's width", middle, 1, 512)
    check_whole("layer1's number of blocks", bottlenecks, 1, 32)
    return Shape(width, blocks, (two, three, four), (middle, bottlenecks))


def _row(name: str, own: Sequence[int], given: Sequence[int] | None) -> Sequence[int]:
    if given is None:
        return own
    if not isinstance(given, list | tuple) or len(given) != len(own):
        raise KirieError(f"{name} must be {len(own)} whole numbers such as {list(own)}, got {given!r:.80}.")
    return given


def _from_hub(shape: Shape, in_channels: int, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Timm's pretrained tensors under the names of `own`; its classification layers are left behind."""
    name = next((TIMM[size] for size, known in SIZES.items() if known == shape), None)
    if name is None:
        raise KirieError(f"The hub has weights of the sizes {', '.join(SIZES)} only, not of {shape}.")
    try:
        network: Any = timm.create_model(name, pretrained=True, in_chans=in_channels)
    except Exception as error:  # no network, no such file, and what else the hub's client raises
        raise no_hub(name, error) from error
    given = network.state_dict()
    return {key: given[key] for key in own}
