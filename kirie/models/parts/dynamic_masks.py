"""Masks by dynamic kernels, and the choice among them by Matrix NMS, in tensors alone.

Wang, Zhang, Kong, Li and Shen, "SOLOv2: Dynamic and Fast Instance Segmentation", NeurIPS 2020 (arXiv 2003.10152),
sections 3.2 and 3.3.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MASK = 0.5  # the probability above which a cell belongs to a mask
SIGMA = 2.0  # of the Gaussian decay


class MaskFacts(NamedTuple):
    """What Matrix NMS asks of N masks.

    Attributes:
        areas: (N,) cells of each.
        certainty: (N,) mean probability of these cells, 0 for a mask without any.
        overlaps: (N, N) cells that two have in common.
        boxes: (N, 4) `xyxy` in cells, zeros for a mask without any.
    """

    areas: Tensor
    certainty: Tensor
    overlaps: Tensor
    boxes: Tensor


def mask_logits(features: Tensor, kernels: Tensor, size: int = 1) -> Tensor:
    """Logits (N, h, w): features (C, h, w) convolved with N kernels (N, C * size * size), zeros around the map."""
    height = features.shape[1]
    return _rows(_surrounded(features, size), kernels, size, 0, height)


def mask_facts(features: Tensor, kernels: Tensor, size: int = 1, *, parts: int = 1) -> MaskFacts:
    """The facts of the masks that N kernels give, without holding all of them at once.

    Args:
        features: (C, h, w).
        kernels: (N, C * size * size).
        size: of a kernel, odd.
        parts: into how many strips the map is cut, of which one is held at a time; at most h.
    """
    height, around = features.shape[1], _surrounded(features, size)
    areas = total = kernels.new_zeros(kernels.shape[0])
    overlaps = areas[:, None] * areas
    rows, columns = [], []  # which of them each mask uses
    for top, bottom in pairwise([height * part // parts for part in range(parts + 1)]):
        soft = _rows(around, kernels, size, top, bottom).sigmoid().flatten(1)
        inside = (soft > MASK).to(soft)
        used = inside.reshape(-1, bottom - top, features.shape[2])
        rows.append(used.amax(2))
        columns.append(used.amax(1))
        areas = areas + inside.sum(1)
        total = total + (soft * inside).sum(1)
        overlaps = overlaps + inside @ inside.T
    boxes = _extents(torch.cat(rows, 1) > 0, torch.stack(columns).amax(0) > 0)
    return MaskFacts(areas, total / areas.clamp(min=1), overlaps, boxes.to(areas))


def point_nms(scores: Tensor) -> Tensor:
    """Scores (B, K, S, S), zero where the cell above, to the left or both has a higher one."""
    best = F.max_pool2d(scores, 2, stride=1, padding=1)[..., :-1, :-1]
    return scores * (scores == best)


def matrix_nms(scores: Tensor, labels: Tensor, areas: Tensor, overlaps: Tensor) -> Tensor:
    """Scores (N,), the lower the more a mask resembles a better one of its class (equation 5, Gaussian).

    Args:
        scores: (N,), the highest first.
        labels: (N,).
        areas: (N,) cells.
        overlaps: (N, N) cells.
    """
    iou = overlaps / (areas[:, None] + areas - overlaps).clamp(min=1)
    iou = (iou * (labels[:, None] == labels)).triu(1)
    iou = F.pad(iou, (0, 0, 1, 0))  # (1 + N, N): with a mask that overlaps none, so that there is a first one
    worst = F.pad(iou.amax(0), (1, 0))[:, None]  # (1 + N, 1): how much each may itself be a copy
    return scores * torch.exp(SIGMA * (worst**2 - iou**2)).amin(0)


def _extents(rows: Tensor, columns: Tensor) -> Tensor:
    """Boxes (N, 4) `xyxy` of masks of which these rows (N, h) and columns (N, w) are used; zeros where none is."""
    sides = []
    for used in (columns, rows):
        place = torch.arange(used.shape[1], device=used.device)
        last = torch.where(used, place + 1, 0).amax(1)
        sides.append((torch.where(used, place, used.shape[1]).amin(1).minimum(last), last))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1)


def _surrounded(features: Tensor, size: int) -> Tensor:
    return F.pad(features, (size // 2,) * 4) if size > 1 else features


def _rows(around: Tensor, kernels: Tensor, size: int, top: int, bottom: int) -> Tensor:
    """Logits (N, bottom - top, w) of some rows; a product of matrices per place of the kernel, as N may be 0."""
    width = around.shape[2] - size + 1
    places = kernels.reshape(-1, around.shape[0], size, size)
    products = (
        places[:, :, row, column] @ around[:, top + row : bottom + row, column : column + width].flatten(1)
        for row in range(size)
        for column in range(size)
    )
    return reduce(torch.add, products).reshape(-1, bottom - top, width)
