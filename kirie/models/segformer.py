r"""SegFormer: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", 2021.

NeurIPS 2021, arXiv 2105.15203, figure 2:

    image -- stage 1 (1/4) -- stage 2 (1/8) -- stage 3 (1/16) -- stage 4 (1/32)
                |                |                |                 |
              linear        linear, up       linear, up        linear, up    (all to 1/4)
                '----------------'--- concatenated ---'-------------'
                                          |
                          linear - norm - ReLU - linear -- logits at 1/4

    stage = overlapping patches, then blocks of: x + attention(norm(x)), x + Mix-FFN(norm(x)); then a norm

Equal to Hugging Face's `SegformerForSemanticSegmentation` with the weights of `nvidia/segformer-b0...b5-finetuned-*`,
and takes them. There is no position code: the 3 x 3 convolution in Mix-FFN tells places apart, so any size will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.parts.checks import check_dropout, check_whole
from kirie.models.parts.conv import BatchNorm
from kirie.models.parts.encoder import padded, pixel_statistics
from kirie.models.parts.freezing import Freezable
from kirie.models.parts.mit_weights import read_mit
from kirie.models.parts.semantic import SemanticModel, SemanticRaw


class Size(NamedTuple):
    """What tells B0 to B5 apart: channels and blocks of the four stages, channels of the decoder."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    decoder_width: int


SIZES = {
    "b0": Size((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Size((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": Size((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": Size((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": Size((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": Size((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
EXPANSIONS = (4, 4, 4, 4)  # of all releases


class PatchEmbedding(nn.Module):
    """Overlapping patches: (B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride)), normed over D."""

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """The patches as a map (B, D, h, w)."""
        return _as_map(self.norm(_channels_last(self.proj(x))))


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a map made `reduction` times smaller (section 3.1).

    A remainder of the map at the right and the bottom has queries but no keys, as in the releases; a map smaller than
    `reduction` has its last row and column repeated.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        if reduction > 1:
            self.reduce = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """What (B, h, w, C) gathers from all places of itself, of the same shape."""
        batch, _, _, channels = x.shape
        each = channels // self.heads
        query = self.query(x).reshape(batch, -1, self.heads, each).transpose(1, 2)  # (B, heads, h w, C / heads)
        seen = x
        if self.reduction > 1:
            seen = self.norm(_channels_last(self.reduce(padded(_as_map(x), self.reduction, 1))))
        pairs = self.key_value(seen).reshape(batch, -1, 2, self.heads, each)
        key, value = pairs.permute(2, 0, 3, 1, 4).unbind()  # each (B, heads, places seen, C / heads)
        gathered = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(gathered.transpose(1, 2).reshape(x.shape))
        return out


class MixFFN(nn.Module):
    """Two linear layers with a depthwise 3 x 3 convolution between them; its zero padding tells where places are."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.shrink = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        inner = self.mix(_as_map(self.expand(x)))  # (B, inner, h, w)
        out: Tensor = self.shrink(F.gelu(_channels_last(inner)))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + Mix-FFN(norm(x)); in training each of the two may be left out at random."""

    def __init__(self, width: int, heads: int, reduction: int, expansion: int, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = EfficientAttention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = MixFFN(width, width * expansion)
        self.drop = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        x = _channels_last(x)
        x = x + self.drop(self.attention(self.norm1(x)))
        x = x + self.drop(self.ffn(self.norm2(x)))
        return _as_map(x)


class Stage(nn.Module):
    """Patches of the map before, blocks, a norm over the channels."""

    def __init__(self, patch: PatchEmbedding, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.patch = patch
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(patch.norm.normalized_shape)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride))."""
        return _as_map(self.norm(_channels_last(self.blocks(self.patch(x)))))


class MixTransformer(Freezable):
    """The encoder (MiT): four stages whose maps have 1/4, 1/8, 1/16 and 1/32 of the image's size, rounded up."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        reductions: Sequence[int],
        expansions: Sequence[int],
        drop_path: float,
    ) -> None:
        super().__init__()
        drops = iter([drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))])  # 0 at the picture's side
        stages = []
        befores = (in_channels, *widths[:-1])
        for i, (before, width) in enumerate(zip(befores, widths, strict=True)):
            patch = PatchEmbedding(before, width, *((7, 4) if i == 0 else (3, 2)))
            shape = (heads[i], reductions[i], expansions[i])
            stages.append(Stage(patch, [Block(width, *shape, next(drops)) for _ in range(depths[i])]))
        self.stages = nn.ModuleList(stages)
        self.apply(_start)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Four maps, finest first, of normalised images (B, C, H, W)."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def levels(self) -> list[list[nn.Module]]:
        """The first patches, then each block (with the patches before it or the norm after it)."""
        levels: list[list[nn.Module]] = []
        for stage in self.stages:
            assert isinstance(stage, Stage)
            opening: list[nn.Module] = [stage.patch]
            if not levels:
                levels, opening = [opening], []
            for block in stage.blocks:
                levels.append([*opening, block])
                opening = []
            levels[-1].append(stage.norm)
        return levels


class Fuse(nn.Module):
    """The decoder's first two linear layers: each stage's own, all resized to stage 1 and stacked (4, 3, 2, 1), mixed.

    Resizing takes weighted means over places and linear layers over channels, so their order does not matter: both
    layers are multiplied into one, which works at each stage's own small size. The result is the same, for
    a fifteenth of the work (4.5 G multiplications become 0.3 G for B0 at 512 x 512).
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.mix = nn.Linear(len(widths) * width, width, bias=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, D, h, w) at the size of the first of the maps (B, C_i, h_i, w_i), finest first."""
        size = maps[0].shape[-2:]
        shares = reversed(self.mix.weight.chunk(len(maps), 1))  # (D, D) for each stage
        mixed: Tensor | None = None
        for x, linear, share in zip(maps, self.linears, shares, strict=True):
            assert isinstance(linear, nn.Linear)
            part = _as_map(F.linear(_channels_last(x), share @ linear.weight, share @ linear.bias))  # (B, D, h_i, w_i)
            if mixed is None:
                mixed = part
            else:
                mixed += F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        assert mixed is not None
        return mixed


class SegFormer(SemanticModel):
    """SegFormer for any number of channels and classes and any picture size; logits at a quarter of the size.

    Args:
        in_channels: C of the images.
        classes: the classes, or how many (1: foreground against background with a single logit).
        size: "b0" to "b5": what the releases are called. The next entries set parts of it otherwise.
        widths: channels of the four stages.
        depths: blocks of each.
        heads: attention heads of each; must divide the widths. None: 1, 2, 5, 8.
        reductions: how many times smaller the map of keys and values is, per stage. None: 8, 4, 2, 1.
        expansions: how many times wider Mix-FFN is inside, per stage. None: 4 in each.
        decoder_width: channels of the decoder.
        drop_path: probability that the last block is left out in training (0 for the first, rising in a straight line).
        dropout: before the last layer, in training.
        frozen_stages: the first so many stages of the encoder do not learn, and none of their blocks is left out.
        encoder_weights: None for random weights; the path of a published ImageNet encoder (the `pytorch_model.bin` or
            `model.safetensors` of `nvidia/mit-b0` and its like); or "hub" to download it (NVIDIA's licence allows
            research only). Used once and not kept in the model file.
        binary: two classes with one logit; True when `classes` is 1.

    Raises:
        KirieError: when an argument is out of range or does not fit another, or the weights cannot be had.
    """

    advice = "From light (b0) to the most accurate (b5); NVIDIA's ready weights are not for commercial use."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        size: str = "b0",
        widths: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        reductions: Sequence[int] | None = None,
        expansions: Sequence[int] | None = None,
        decoder_width: int | None = None,
        drop_path: float = 0.1,
        dropout: float = 0.1,
        frozen_stages: int = 0,
        encoder_weights: str | None = None,
        binary: bool | None = None,
    ) -> None:
        if not isinstance(size, str) or size not in SIZES:
            raise KirieError(f"size must be one of {', '.join(SIZES)}, got {size!r:.80}.")
        own = {"widths": widths, "depths": depths, "heads": heads, "reductions": reductions, "expansions": expansions}
        usual = {"heads": HEADS, "reductions": REDUCTIONS, "expansions": EXPANSIONS, **SIZES[size]._asdict()}
        given = {name: None if value is None else _four(name, value) for name, value in own.items()}
        shape: dict[str, Any] = {name: usual[name] if value is None else value for name, value in given.items()}
        for width, number in zip(shape["widths"], shape["heads"], strict=True):
            if width % number:
                raise KirieError(f"{number} heads do not divide a width of {width}: give heads that do.")
        width = usual["decoder_width"] if decoder_width is None else decoder_width
        check_whole("decoder_width", width, 1, 2**14)
        check_dropout(drop_path, "drop_path")
        check_dropout(dropout)
        check_whole("frozen_stages", frozen_stages, 0, 4)
        arguments = {
            "size": size, **given, "decoder_width": decoder_width, "drop_path": drop_path, "dropout": dropout,
            "frozen_stages": frozen_stages,
        }  # fmt: skip
        mean, std = pixel_statistics(in_channels)
        super().__init__(in_channels, classes, arguments, binary=binary, mean=mean, std=std)
        self.encoder: MixTransformer = MixTransformer(in_channels, **shape, drop_path=drop_path)
        self.fuse = Fuse(shape["widths"], width)
        self.norm = BatchNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(width, self.logit_channels, 1)
        if encoder_weights is not None:
            read_mit(self.encoder, encoder_weights, size)
        self.encoder.freeze(module for stage in self.encoder.stages[:frozen_stages] for module in stage.modules())

    @property
    def least_side(self) -> int:
        """See `SegmentationModel.least_side`; from there on the coarsest map has several cells."""
        return 64

    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits (B, K, ceil(H / 4), ceil(W / 4)) for images (B, C, H, W) in [0, 1]; `decode` resizes them."""
        maps = self.encoder(self.normalise(images))
        fused = F.relu(self.norm(self.fuse(maps)), inplace=True)  # (B, D, h, w)
        return SemanticRaw(self.head(self.dropout(fused)))


def _as_map(x: Tensor) -> Tensor:
    """(B, h, w, C) seen as (B, C, h, w), which convolutions take in that layout."""
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, h, w) seen as (B, h, w, C), for what works on the channels of each place."""
    return x.permute(0, 2, 3, 1)


def _start(module: nn.Module) -> None:
    """Random weights as transformers begin with."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_MOST = {"widths": 2**14, "depths": 256, "heads": 2**10, "reductions": 64, "expansions": 64}


def _four(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise KirieError(f"{name} must be a list of 4 whole numbers, one for each stage, got {values!r:.80}.")
    for value in values:
        check_whole(name, value, 1, _MOST[name])
    return tuple(values)
