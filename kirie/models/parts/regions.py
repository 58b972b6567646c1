"""What is done with regions of a pyramid: pooling, the heads for boxes and for masks, and what these learn.

He, Gkioxari, Dollar and Girshick, "Mask R-CNN", ICCV 2017 (arXiv 1703.06870), on the feature pyramid of Lin et al.,
CVPR 2017. Regions are boxes (N, 4) `xyxy` in pixels of the picture that the network sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_align  # type: ignore[import-untyped]

from kirie.masks import Masks
from kirie.models.parts.anchors import clipped, coded, decoded, wider
from kirie.models.parts.conv import ConvNorm

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the codes of boxes by regions
_WHOLE, _LEVEL = 224, 4  # a region of that many pixels a side belongs to the map of stride 2 ** 4


def pooled(
    maps: Sequence[Tensor],
    regions: Sequence[Tensor],
    strides: Sequence[int],
    cells: int,
    *,
    aligned: bool,
    samples: int,
) -> Tensor:
    """Each region's part of one map of the pyramid, (N, C, cells, cells) float32, picture after picture.

    RoIAlign of the Mask R-CNN paper; the map is chosen by the region's area (Lin et al., equation 1).

    Args:
        maps: (B, C, h_i, w_i), finest first; float32 and contiguous ones need no copy.
        regions: boxes (N_b, 4) per picture.
        strides: of the maps, powers of two.
        cells: how many a side.
        aligned: whether pixels are taken where they are, half a pixel from where the first release had them.
        samples: per cell and axis; 0 for as many as the region has pixels of the map there.
    """
    boxes = torch.cat(list(regions))
    picture = torch.cat([torch.full_like(own[:, :1], index) for index, own in enumerate(regions)])
    rows = torch.cat([picture, boxes], 1)
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    first, last = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    level = (_LEVEL + (side / _WHOLE).log2() + 1e-6).floor().clamp(first, last)
    out = maps[0].new_zeros((boxes.shape[0], maps[0].shape[1], cells, cells), dtype=torch.float32)
    for own, (x, stride) in enumerate(zip(maps, strides, strict=True), first):
        index = torch.where(level == own)[0]
        part = roi_align(x.float().contiguous(), rows[index], cells, 1 / stride, samples, aligned)
        out.index_copy_(0, index, part)
    return out


class BoxHead(nn.Module):
    """The class of each region, and where its box is: the heads of Lin et al. (two linear layers) or with convolutions.

    Args:
        channels: C of what is pooled.
        cells: of that, a side.
        classes: K.
        width: of the linear layers.
        layers: how many linear layers.
        convs: 3 x 3 convolutions before them, as wide as the input.
        norm: batch norm after these.
        spare: logits that stand for nothing, between those of the classes and that of the background.
    """

    def __init__(
        self,
        channels: int,
        cells: int,
        classes: int,
        *,
        width: int = 1024,
        layers: int = 2,
        convs: int = 0,
        norm: bool = False,
        spare: int = 0,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.convs = _convolutions(channels, channels, convs, norm=norm)
        sizes = [channels * cells**2, *[width] * layers]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.logits = nn.Linear(sizes[-1], classes + spare + 1)
        self.codes = nn.Linear(sizes[-1], 4 * classes)
        for layer in self.layers:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.codes.weight, std=0.001)
        for linear in (*self.layers, self.logits, self.codes):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K + spare + 1), background last, and codes (N, K, 4), for regions (N, C, cells, cells)."""
        x = self.convs(x).flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x), inplace=True)
        return self.logits(x), self.codes(x).unflatten(1, (self.classes, 4))


class MaskHead(nn.Module):
    """The mask of each region for one class, at twice the resolution: figure 4 of the Mask R-CNN paper, right.

    Args:
        channels: C of what is pooled.
        classes: K.
        width: of the convolutions.
        convs: 3 x 3 convolutions.
        norm: batch norm after these.
    """

    def __init__(self, channels: int, classes: int, *, width: int = 256, convs: int = 4, norm: bool = False) -> None:
        super().__init__()
        self.convs = _convolutions(channels, width, convs, norm=norm)
        self.enlarge = nn.ConvTranspose2d(width if convs else channels, width, 2, 2)
        self.predictor = nn.Conv2d(width, classes, 1)
        nn.init.kaiming_normal_(self.enlarge.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.enlarge, self.predictor):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Logits (N, 2 * cells, 2 * cells) of the class (N,) of each region (N, C, cells, cells)."""
        x = F.relu(self.enlarge(self.convs(x)), inplace=True)
        # The predictor is a matrix: only the row of the region's own class is multiplied, not all K of them.
        weight, bias = self.predictor.weight.flatten(1)[labels], self.predictor.bias
        assert bias is not None
        return torch.einsum("nchw,nc->nhw", x, weight) + bias[labels][:, None, None]


def _convolutions(channels: int, width: int, count: int, *, norm: bool) -> nn.Sequential:
    """3 x 3 convolutions with ReLU, and with batch norm where wanted: (N, channels, h, w) -> (N, width, h, w)."""
    out = nn.Sequential()
    for index in range(count):
        before = width if index else channels
        if norm:
            out.append(ConvNorm(before, width, 3))
        else:
            out.append(nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)))
    for module in out.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return out


def detected(
    logits: Tensor,
    codes: Tensor,
    regions: Tensor,
    size: Tensor,
    *,
    score: float,
    overlap: float,
    most: int,
    least: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (M, 4), labels (M,) and scores (M,) of one picture's objects, the highest score first, as tensors alone.

    A region can be an object of several classes; boxes of one class suppress each other.

    Args:
        logits: (N, K + spare + 1), background last.
        codes: (N, K, 4).
        regions: (N, 4).
        size: (2,), H and W of the picture without padding, to which boxes are cut.
        score: above which a region is an object of a class.
        overlap: IoU above which a box goes that overlaps a better one of its class.
        most: how many are left at the most.
        least: boxes must be wider and higher than so many pixels.
    """
    scores = logits.float().softmax(1)[:, : codes.shape[1]]
    region, labels = torch.where(scores > score)
    boxes = clipped(decoded(codes[region, labels].float(), regions[region], WEIGHTS), size)
    kept = torch.where(wider(boxes, least))[0]
    region, labels, boxes = region[kept], labels[kept], boxes[kept]
    found = scores[region, labels]
    # Classes are moved apart, so that one call serves them all.
    # In float64: far from 0 float32 has no digits left for an exact IoU. Apple's GPUs have no such numbers.
    place, doubled, ranks, step = (
        part.cpu() if part.device.type == "mps" else part for part in (labels, boxes, found, size.max() + 1)
    )
    kept = nms(doubled.double() + place[:, None] * step.double(), ranks.double(), overlap)[:most].to(boxes.device)
    return boxes[kept], labels[kept], found[kept]


def box_losses(
    logits: Tensor, codes: Tensor, regions: Tensor, labels: Tensor, boxes: Tensor, *, beta: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Losses of the classes (cross entropy) and of the boxes (smooth L1, of the true class), both per region.

    Args:
        logits: (N, K + spare + 1), background last.
        codes: (N, K, 4).
        regions: (N, 4); those with a truth come with their place in `labels`.
        labels: (N,) class of each region, -1 for background.
        boxes: (P, 4), the truths of the P regions that have one, in their order.
        beta: of smooth L1; 0 for L1.
    """
    count = max(len(labels), 1)
    aim = torch.where(labels < 0, logits.shape[1] - 1, labels)
    classification = F.cross_entropy(logits.float(), aim, reduction="sum") / count
    with_truth = torch.where(labels >= 0)[0]
    own = codes[with_truth, labels[with_truth]].float()
    box = F.smooth_l1_loss(own, coded(boxes, regions[with_truth], WEIGHTS), beta=beta, reduction="sum") / count
    return classification, box


def mask_aims(masks: Masks, rows: Tensor, regions: Tensor, cells: int, *, aligned: bool, soft: bool) -> Tensor:
    """What the masks of regions learn, (P, cells, cells) float32 in [0, 1]: RoIAlign of the truth's mask.

    Made from the masks' own boxes: no mask is unpacked to its picture.

    Args:
        masks: of the truths.
        rows: (P,) which of them each region learns.
        regions: (P, 4).
        cells: how many a side.
        aligned: see `pooled`.
        soft: whether cells are shares; otherwise 1 where the share is half or more, and 0 elsewhere.
    """
    rows, boxes = rows.cpu(), regions.detach().float().cpu()
    out = boxes.new_zeros(len(boxes), cells, cells)
    needed, place = torch.unique(rows, return_inverse=True)
    for index, (top, left, bits) in enumerate(masks[needed.numpy()].crops()):
        # A rim of zeros, but not at the picture's edge, beyond which RoIAlign takes the outermost pixels again.
        rim = [(int(top > 0), int(top + bits.shape[0] < masks.size[0]))]
        rim += [(int(left > 0), int(left + bits.shape[1] < masks.size[1]))]
        crop = torch.from_numpy(np.pad(bits, rim).astype(np.float32))
        mine = torch.where(place == index)[0]
        corner = boxes.new_tensor([left - rim[1][0], top - rim[0][0]]).repeat(2)
        own = torch.cat([boxes.new_zeros(len(mine), 1), boxes[mine] - corner], 1)
        out[mine] = roi_align(crop[None, None], own, cells, 1.0, -1, aligned)[:, 0]
    out = out if soft else (out >= 0.5).float()
    return out.to(regions.device)
