r"""PSPNet: Zhao, Shi, Qi, Wang and Jia, "Pyramid Scene Parsing Network", CVPR 2017 (arXiv 1612.01105).

                                     .-- means of 1 x 1 parts -- 1 x 1 --.
    image -- dilated encoder -- maps-+-- means of 2 x 2 parts -- 1 x 1 --+-- enlarged and joined -- 3 x 3 -- 1 x 1
                      \        1/8  +-- means of 3 x 3 parts -- 1 x 1 --+   with the maps             -- logits
                       \            '-- means of 6 x 6 parts -- 1 x 1 --'
                        3 x 3 -- 1 x 1 -- auxiliary logits, for the loss alone

With `encoder="resnet50s"` (or 101, 152) and `encoder_options={"dilate_first": True}` it is the network of the authors'
PyTorch release (hszhao/semseg), and takes its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.contract import Frame
from kirie.models.parts.checks import check_dropout, check_flag, check_whole
from kirie.models.parts.conv import BatchNorm, ConvNorm, FCNHead
from kirie.models.parts.encoder import Encoder, build_encoder
from kirie.models.parts.semantic import SemanticModel, SemanticRaw, full_size
from kirie.models.parts.sizes import at_least, same

BINS = (1, 2, 3, 6)


class PyramidHead(nn.Module):
    """Joins to the maps what the whole picture shows, its halves, its thirds..., and classifies every position.

    Args:
        in_channels: C.
        width: channels of each branch, and between the two last convolutions.
        classes: K.
        bins: per branch, into how many parts each side of the maps is divided.
        dropout: probability that the classifier misses a channel.
        align_corners: how the branches are enlarged.
    """

    def __init__(
        self, in_channels: int, width: int, classes: int, bins: Sequence[int], *, dropout: float, align_corners: bool
    ) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.align_corners = align_corners
        self.branches = nn.ModuleList(ConvNorm(in_channels, width) for _ in self.bins)
        self.mix = nn.Conv2d(in_channels + width * len(self.bins), width, 3, padding=1, bias=False)
        self.norm = BatchNorm(width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, h, w) for the encoder's last maps (B, C, h, w)."""
        pooled = [branch(_means(x, n)) for n, branch in zip(self.bins, self.branches, strict=True)]
        x = F.relu(self.norm(self.mixed(x, pooled)), inplace=True)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits

    def mixed(self, x: Tensor, pooled: Sequence[Tensor]) -> Tensor:
        """What `mix` makes of `x` (B, C, h, w) joined with the enlarged branches, without enlarging and joining them.

        A convolution and an enlargement are both sums with weights, so they may change places: a branch has few values,
        to which the convolution's nine places are applied before each is enlarged and shifted. That halves the work of
        the network's largest convolution.

        Args:
            x: the maps.
            pooled: per branch (B, width, n, n).

        Returns:
            (B, width, h, w).
        """
        channels, (height, width) = x.shape[1], x.shape[-2:]
        weight, *weights = torch.split(self.mix.weight, [channels, *(part.shape[1] for part in pooled)], 1)
        values, places = [], []
        for part, own in zip(pooled, weights, strict=True):
            values.append(torch.einsum("okt,bkn->bont", own.flatten(2), part.flatten(2)).flatten(2))  # (B, width, 9 nn)
            places.append(_places(part, height, width, align_corners=self.align_corners))  # (9 nn, h w)
        enlarged = torch.cat(values, 2) @ torch.cat(places)  # (B, width, h w)
        out: Tensor = F.conv2d(x, weight, padding=1)
        return out + enlarged.reshape(out.shape)


def _means(x: Tensor, parts: int) -> Tensor:
    """The means (B, C, n, n) of n x n parts of a map (B, C, h, w), which overlap by a cell where h or w is no multiple.

    A graph for any size has no such pooling: there it is a matrix for each axis, of the cells' shares in the parts.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, parts)
    rows, columns = (_shares(side, parts, x) for side in x.shape[-2:])
    return rows @ x @ columns.T


def _shares(side: int, parts: int, like: Tensor) -> Tensor:
    """(parts, side) the share that each of so many cells has in the mean of each part."""
    part = torch.arange(parts, device=like.device)[:, None]
    cell = torch.arange(side, device=like.device)
    inside = (cell >= part * side // parts) & (cell < ((part + 1) * side + parts - 1) // parts)
    shares = inside.to(like.dtype)
    return shares / shares.sum(1, keepdim=True)


def _places(part: Tensor, height: int, width: int, *, align_corners: bool) -> Tensor:
    """How much each value of `part` (B, C, n, n) counts, enlarged, at each place's nine neighbours: (9 nn, h w)."""
    side = part.shape[-1]
    each = torch.eye(side * side, device=part.device, dtype=part.dtype).reshape(-1, 1, side, side)
    each = F.interpolate(each, (height, width), mode="bilinear", align_corners=align_corners)  # (nn, 1, h, w)
    each = F.pad(each, (1, 1, 1, 1))
    shifted = [each[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.cat(shifted, 1).flatten(2).flatten(0, 1)


class PSPNet(SemanticModel):
    """PSPNet for any number of channels and classes and any picture size, on any timm encoder.

    With aligned corners a cell of the encoder's maps stands for the pixel at its own number times the stride: that is
    where the symmetric padding of ResNets centres it. So the release demands pictures of 8 n + 1 pixels. Pictures of
    other sizes are continued here to the next such size by repeating the last row and column, and the logits are
    cropped: each pixel gets what the release would give for it. To stretch the maps to the picture in place of that
    would move what is seen at its lower and right edges by up to 7 pixels.

    Args:
        in_channels: C of the images.
        classes: the classes, or how many (1: foreground against background with a single logit).
        encoder: a timm architecture.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`, such as {"dilate_first": True}, which the release has.
        output_stride: 8, 16 or 32; the release has 8.
        bins: of the pyramid, see `PyramidHead`.
        width: channels of each branch and of the head; the auxiliary head has half.
        dropout: probability that the last convolution misses a channel.
        auxiliary: whether a second head reads the last maps but one; its loss has the factor 0.4.
        align_corners: whether maps are enlarged with the centres of the corner pixels on each other, everywhere.
            Better off for encoders that cut the picture into patches, such as ConvNeXt.
        binary: two classes with one logit; True when `classes` is 1.

    Raises:
        KirieError: when an argument is out of range, or the encoder or its weights cannot be had.
    """

    advice = "Scenes in which the surroundings tell what a region is; ready weights for ADE20K, Cityscapes and VOC."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        output_stride: int = 8,
        bins: Sequence[int] = BINS,
        width: int = 512,
        dropout: float = 0.1,
        auxiliary: bool = True,
        align_corners: bool = True,
        binary: bool | None = None,
    ) -> None:
        _check_bins(bins)
        check_whole("width", width, 1, 4096)
        check_dropout(dropout)
        check_flag("auxiliary", auxiliary)
        check_flag("align_corners", align_corners)
        body = build_encoder(
            encoder, in_channels, encoder_options, weights=encoder_weights, output_stride=output_stride
        )
        arguments = {
            "encoder": encoder, "encoder_options": body.options, "output_stride": output_stride, "bins": tuple(bins),
            "width": width, "dropout": dropout, "auxiliary": auxiliary, "align_corners": align_corners,
        }  # fmt: skip
        super().__init__(in_channels, classes, arguments, binary=binary, mean=body.mean, std=body.std)
        if auxiliary and len(body.channels) < 2:
            raise KirieError(f"{encoder!r} has a single stage, so nothing for the auxiliary head: set auxiliary=False.")
        self.align_corners = align_corners
        self.encoder: Encoder = body
        self.head = PyramidHead(
            body.channels[-1], width, self.logit_channels, bins, dropout=dropout, align_corners=align_corners
        )
        if auxiliary:
            middle = max(width // 2, 1)
            self.auxiliary = FCNHead(body.channels[-2], middle, self.logit_channels, dropout=dropout, whole=True)

    def forward(self, images: Tensor) -> SemanticRaw:
        """Logits (B, K, H, W) for images (B, C, H, W) in [0, 1]; (B, K, h, w) where those cover the picture exactly."""
        height, width = images.shape[-2:]
        x = self.normalise(images)
        down, right = self._sizes(height)[0], self._sizes(width)[0]
        if not same((down, right), (height, width)):
            x = F.pad(x, (0, right - width, 0, down - height), mode="replicate")
        features = self.encoder(x)
        logits = self.covering(self.head(features[-1]), (height, width))
        return SemanticRaw(logits, None if self.auxiliary is None else features[-2])

    @property
    def frame(self) -> Frame:
        """See `SegmentationModel.frame`."""
        step, rest = self.encoder.strides[-1], int(self.align_corners)
        return Frame(step, rest, 2 * step if not rest else step + 1)

    def covering(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, h, w) brought to the picture from where their cells lie; see `SemanticModel`."""
        if torch.compiler.is_exporting() and not self.align_corners:
            return logits  # exports take framed pictures alone, which the cells cover exactly
        covered = [self._sizes(side)[1] for side in size]
        return full_size(logits, covered, size, align_corners=self.align_corners)

    def _sizes(self, side: int) -> tuple[int, int]:
        """For a side of the picture: what it is padded to, and how much of that the cells of the maps cover.

        There are at least two cells, as batch norm cannot learn from one.
        """
        step = self.encoder.strides[-1]
        if not self.align_corners:
            cells = at_least(-(-side // step), 2)
            return cells * step, cells * step
        cells = at_least(-(-(side - 1) // step), 1) + 1
        between = (cells - 1) * step + 1  # from the first cell's centre to the last one's
        return between if self.encoder.divisor == 1 else cells * step, between


def _check_bins(bins: object) -> None:
    sound = isinstance(bins, list | tuple) and 0 < len(bins) <= 16
    if not sound or not all(type(parts) is int and 1 <= parts <= 64 for parts in bins):  # type: ignore[attr-defined]
        raise KirieError(f"bins must be 1 to 16 whole numbers from 1 to 64 such as {list(BINS)}, got {bins!r:.80}.")
