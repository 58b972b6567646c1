"""The largest of logits that cover a picture at another resolution, without all of them at that of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PIXELS = 1 << 14  # whose logits are computed at once


def largest_at(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The class with the largest logit at each pixel of a picture, as of logits resized bilinearly to its size.

    Between four neighbours whose largest class is the same, no other lies above it: weighted means keep the order. So
    logits are computed only at pixels where neighbours disagree, which are those along the borders of what was found.

    Args:
        logits: (K, h, w), covering the picture exactly; channels last in memory is fastest.
        size: (H, W) of the picture.

    Returns:
        (H, W) int64.
    """
    classes, height, width = logits.shape
    top, bottom, down = _neighbours(height, int(size[0]), logits.device)
    left, right, across = _neighbours(width, int(size[1]), logits.device)
    flat = logits.permute(1, 2, 0).reshape(height * width, classes)
    near = flat.argmax(1).reshape(height, width)
    below = torch.cat([near[1:], near[-1:]])
    same = near == below
    alike = same & _to_the_right(same) & (near == _to_the_right(near))
    labels = near[top][:, left]
    rows, columns = (~alike)[top][:, left].nonzero(as_tuple=True)
    for y, x in zip(torch.split(rows, PIXELS), torch.split(columns, PIXELS), strict=True):
        upper, lower = (
            torch.lerp(flat[row * width + left[x]], flat[row * width + right[x]], across[x, None])
            for row in (top[y], bottom[y])
        )
        labels[y, x] = torch.lerp(upper, lower, down[y, None]).argmax(1)
    return labels


def _neighbours(length: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of the wanted places along a side the two it lies between, and how near it is to the second."""
    places = torch.arange(wanted, dtype=torch.float64, device=device)
    places = ((places + 0.5) * (length / wanted) - 0.5).clamp(min=0)
    first = places.long().clamp(max=length - 1)
    return first, (first + 1).clamp(max=length - 1), (places - first).float()


def _to_the_right(x: Tensor) -> Tensor:
    return torch.cat([x[:, 1:], x[:, -1:]], 1)
