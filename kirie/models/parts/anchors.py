"""Anchors of two-stage detectors, and boxes coded by them: Ren et al., "Faster R-CNN", NIPS 2015 (arXiv 1506.01497).

Boxes are (N, 4) `xyxy` in pixels of the picture that the network sees. The codes (N, 4) of a box by another one are how
far its centre lies from the other's, in sides of that, and the logarithms of how many times as wide and high it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST = math.log(1000 / 16)  # a side grows to no more than that many times its anchor's


def cell_anchors(size: float, ratios: Sequence[float], *, rounded: bool = False) -> Tensor:
    """The anchors (A, 4) of the place (0, 0), one for each ratio of height to width, all of the same area.

    Args:
        size: side of the square one, in pixels.
        ratios: A of them.
        rounded: whether corners are whole pixels, as in torchvision.
    """
    tall = torch.tensor(list(ratios)).sqrt()
    half = torch.stack([size / tall, size * tall], 1) / 2
    anchors = torch.cat([-half, half], 1)
    return anchors.round() if rounded else anchors


def grid_anchors(anchors: Tensor, cells: tuple[int, int], steps: tuple[int, int]) -> Tensor:
    """Anchors (h * w * A, 4) all over a map, row by row, those of one place side by side.

    Args:
        anchors: (A, 4) of the map's first cell.
        cells: (h, w) of the map.
        steps: pixels between two cells, downwards and to the right.
    """
    down, right = (
        torch.arange(count, dtype=torch.float32, device=anchors.device) * step
        for count, step in zip(cells, steps, strict=True)
    )
    places = torch.stack([right.expand(len(down), -1), down[:, None].expand(-1, len(right))], -1)  # (h, w, 2)
    return (places.repeat(1, 1, 2)[:, :, None] + anchors).reshape(-1, 4)


def coded(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The codes (N, 4) of boxes (N, 4) by anchors (N, 4), all with area, times `weights`."""
    sides, own = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    moved = (boxes[:, :2] + sides / 2 - anchors[:, :2] - own / 2) / own
    return torch.cat([moved, (sides / own).log()], 1) * anchors.new_tensor(weights)


def decoded(codes: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The boxes (N, 4) that codes (N, 4), times `weights`, mean by anchors (N, 4)."""
    codes = codes / codes.new_tensor(weights)
    own = anchors[:, 2:] - anchors[:, :2]
    centres = codes[:, :2] * own + anchors[:, :2] + own / 2
    half = codes[:, 2:].clamp(max=_LARGEST).exp() * own / 2
    return torch.cat([centres - half, centres + half], 1)


def clipped(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (N, 4) cut to a picture of `size` (2,), its H and W."""
    return torch.minimum(boxes.clamp(min=0), size.flip(0).repeat(2).to(boxes.dtype))


def wider(boxes: Tensor, least: float) -> Tensor:
    """(N,) bool, which boxes are both wider and higher than `least` pixels."""
    return ((boxes[:, 2:] - boxes[:, :2]) > least).all(1)
