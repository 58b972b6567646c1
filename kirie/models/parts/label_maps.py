"""The largest of several maps at each pixel, also of logits that cover a picture at a lower resolution than its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 0.5  # of the cells that are compared class by class
FEW = 4  # classes in question; cells with more are compared by themselves
CELLS = 1 << 8  # that a CPU's caches hold at once, all classes of them; a GPU takes many times as many
PIXELS = 1 << 16  # that are looked at at once, the classes in question


def largest_at(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The class with the largest logit at each pixel of a picture, as of logits resized bilinearly to its size.

    Each pixel lies in a cell between four neighbours, whose weighted mean it is. Where their largest class is the same,
    no other can lie above it. In other cells, along the borders of what was found, those classes are in question whose
    largest value is not below the smallest one of another class: few, however many classes there are.
    Where the picture is hardly larger than the logits, or most cells are such, all is resized after all.

    Args:
        logits: (K, h, w) float32, finite, covering the picture exactly.
        size: (H, W) of the picture.

    Returns:
        (H, W) int64.
    """
    height, width = logits.shape[1:]
    if size[0] * size[1] < 2 * height * width:
        return _resized(logits, size)
    top, down = _cells_along(height, int(size[0]), logits.device)
    left, across = _cells_along(width, int(size[1]), logits.device)
    pixels = _by_pixel(logits)
    first = pixels.argmax(1).reshape(height, width)
    near = torch.cat([first, first[-1:]])  # the last row and column have themselves as neighbours
    near = torch.cat([near, near[:, -1:]], 1)
    alike = (first == near[:-1, 1:]) & (first == near[1:, :-1]) & (first == near[1:, 1:])
    cells = (~alike).flatten().nonzero()[:, 0]
    if len(cells) > MOST * height * width:
        return _resized(logits, size)
    labels = first.index_select(1, left).index_select(0, top)
    numbers = cells.new_full((height * width,), -1)
    numbers[cells] = torch.arange(len(cells), device=cells.device)
    number = numbers.reshape(height, width).index_select(1, left).index_select(0, top).flatten()
    places = (number >= 0).nonzero()[:, 0]
    own = number.index_select(0, places)
    for slots, values, names in _in_question(pixels, cells, width):
        slot = slots.index_select(0, own)
        for part in torch.split((slot >= 0).nonzero()[:, 0], PIXELS):
            place, here = places.index_select(0, part), slot.index_select(0, part)
            y, x = down.index_select(0, place // size[1])[:, None], across.index_select(0, place % size[1])[:, None]
            a, b, c, d = values.index_select(0, here).unbind(1)
            best = torch.lerp(torch.lerp(a, b, x), torch.lerp(c, d, x), y).argmax(1, keepdim=True)
            labels.view(-1)[place] = names.index_select(0, here).gather(1, best)[:, 0]
    return labels


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    # Channels last, as PyTorch's convolutions give them: other runtimes' are enlarged several times as slowly.
    logits = logits[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)[0].argmax(0)


def largest(maps: Tensor) -> Tensor:
    """`maps.argmax(0)` (h, w) of contiguous maps (K, h, w): PyTorch itself takes many times as long for few."""
    best, labels = maps[0].clone(), torch.zeros(maps.shape[1:], dtype=torch.int64, device=maps.device)
    for label in range(1, len(maps)):
        labels.masked_fill_(maps[label] > best, label)
        torch.maximum(best, maps[label], out=best)
    return labels


def _by_pixel(maps: Tensor) -> Tensor:
    """Maps (K, h, w) as (h * w, K), contiguous."""
    if maps.device.type == "cpu" and maps.is_contiguous():  # as other runtimes give them
        return torch.from_numpy(cv2.transpose(maps.flatten(1).numpy()))  # PyTorch itself takes three times as long
    return maps.permute(1, 2, 0).flatten(0, 1).contiguous()


def _in_question(pixels: Tensor, cells: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Groups of cells, with the classes that may be the largest there and their logits.

    Args:
        pixels: (h * w, K) logits.
        cells: each by the upper left one of its neighbours.
        width: w.

    Yields:
        the place of each cell in the group or -1, the logits (N, 4, k) of the neighbours of those in it, the upper
        ones first, and the classes (N, k), in rising order; the first one again where there are fewer than k.
    """
    right = (cells % width < width - 1).long()
    below = (cells < len(pixels) - width).long() * width
    corners = torch.stack([cells, cells + right, cells + below, cells + below + right], 1)
    found = [cells.new_empty(0, 2)]
    some = CELLS if pixels.device.type == "cpu" else 64 * CELLS
    for start, part in zip(range(0, len(cells), some), torch.split(corners, some), strict=False):
        values = pixels.index_select(0, part.flatten()).reshape(-1, 4, pixels.shape[1])
        possible = values.amax(1) >= values.amin(1).amax(1, keepdim=True)
        found.append(possible.nonzero().add_(cells.new_tensor([start, 0])))
    cell, name = torch.cat(found).unbind(1)
    counts = torch.bincount(cell, minlength=len(cells))
    firsts = counts.cumsum(0) - counts
    place = torch.arange(len(cell), device=cell.device) - firsts[cell]
    for these in (counts <= FEW, counts > FEW):
        if not bool(these.any()):
            continue
        names = name[firsts[these], None].repeat(1, int(counts[these].max()))
        slots = (these.cumsum(0) - 1).where(these, -1)
        slot = slots[cell]
        mine = slot >= 0
        names[slot[mine], place[mine]] = name[mine]
        yield slots, pixels[corners[these][:, :, None], names[:, None]], names


def _cells_along(length: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of the wanted places along a side the neighbour before it, and how near it is to the one behind it."""
    places = torch.arange(wanted, dtype=torch.float64, device="cpu")  # Apple's GPUs know no float64
    places = ((places + 0.5) * (length / wanted) - 0.5).clamp(min=0)
    first = places.long().clamp(max=length - 1)
    return first.to(device), (places - first).float().to(device)
