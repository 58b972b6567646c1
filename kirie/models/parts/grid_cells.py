"""SOLO's grids: checked, which of their cells learn which object of a picture, and how they learn its class.

Wang, Kong, Shen, Jiang and Li, "SOLO: Segmenting Objects by Locations", ECCV 2020 (arXiv 1912.04488), section 3.3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from kirie.errors import KirieError, counted
from kirie.masks import Crop, Masks
from kirie.models.parts.pasting import shrunk
from kirie.results import Instances

CENTRE = 0.2  # the share of an object's box, around its centre of mass, in which cells learn it

Range = tuple[float, float]


class TaughtCells(NamedTuple):
    """What one picture teaches the cells of all grids, one grid after another, row by row.

    Attributes:
        owners: (cells,) int64, the object that a cell learns, or -1.
        labels: (N,) int64 classes of the objects.
        masks: of the objects, in a picture that the grids cover exactly.
        crowds: of each crowd its class and the (cells,) bool that it reaches, which learn nothing about that class.
    """

    owners: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    masks: Masks
    crowds: list[tuple[int, npt.NDArray[np.bool_]]]

    @classmethod
    def of(cls, truth: Instances, frame: tuple[int, int], grids: Sequence[int], ranges: Sequence[Range]) -> TaughtCells:
        """What a truth teaches.

        Args:
            truth: of a picture.
            frame: (H, W) of the picture with its padding, which the grids divide evenly.
            grids: S of each grid, which has S x S cells.
            ranges: from and to which root of the box's area an object belongs to each grid, ends included; the first
                begins at 0 and the last never ends.
        """
        single = truth.singles()
        masks = _framed(single.masks, frame)
        crowds, crowded = [], _framed(truth.masks[truth.crowd], frame)
        for index, label in enumerate(truth.labels[truth.crowd].tolist()):
            shares = [shrunk(crowded[index], (grid, grid)).ravel() for grid in grids]
            crowds.append((label, np.concatenate(shares) > 0))
        return cls(_owners(masks, single.boxes, frame, grids, ranges), single.labels, masks, crowds)


def category_loss(logits: Tensor, taught: Sequence[TaughtCells]) -> Tensor:
    """The focal loss (gamma 2, alpha 0.25) of logits (B, K, cells) against B truths, per positive cell and one more."""
    truth, weights = torch.zeros(logits.shape), torch.ones(logits.shape)
    for index, each in enumerate(taught):
        for label, reached in each.crowds:
            weights[index, label, torch.from_numpy(reached)] = 0
        positive = np.flatnonzero(each.owners >= 0)
        labels, cells = torch.from_numpy(each.labels[each.owners[positive]]), torch.from_numpy(positive)
        truth[index, labels, cells] = 1
        weights[index, labels, cells] = 1
    truth, weights = truth.to(logits.device), weights.to(logits.device)
    wrong = torch.where(truth > 0, -logits, logits)  # the logit of the answer that is not true
    share = torch.where(truth > 0, 0.25, 0.75)
    losses = share * wrong.sigmoid() ** 2 * F.softplus(wrong)
    return (losses * weights).sum() / (truth.sum() + 1)


def checked_grids(
    grids: object, strides: object, ranges: object, known: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Range, ...]]:
    """Grids with the strides of their maps and the sizes of their objects, as tuples.

    Args:
        grids: S of each.
        strides: as many.
        ranges: as many pairs.
        known: the strides of the encoder's maps; the pyramid has one map more.

    Raises:
        KirieError: when they are not so, or an object would belong to no grid.
    """
    count = len(_row(grids))
    if not 1 <= count <= len(known) + 1 or not all(type(v) is int and 1 <= v <= 512 for v in _row(grids)):
        raise KirieError(
            f"grids must be 1 to {len(known) + 1} whole numbers from 1 to 512, one for each map of the pyramid that is "
            f"used; got {grids!r:.80}."
        )
    if len(_row(strides)) != count or not all(type(v) is int and v in known for v in _row(strides)):
        raise KirieError(
            f"strides must be {counted(count, 'number')}, one for each grid, out of {list(known)}; got {strides!r:.80}."
        )
    pairs = [_row(pair) for pair in _row(ranges)]
    sound = len(pairs) == count and all(len(p) == 2 and all(type(v) in (int, float) for v in p) for p in pairs)
    if not sound or not all(0 <= low < high < 1e6 for low, high in pairs):
        raise KirieError(
            f"scale_ranges must be {counted(count, 'pair')} of pixels, one for each grid, each a smaller and a larger "
            f"number; got {ranges!r:.120}."
        )
    if any(high < low for (_, high), (low, _) in pairwise(pairs)):
        raise KirieError(
            f"scale_ranges must leave no gap, or objects between two of them would be left out; got {ranges!r:.120}."
        )
    return _row(grids), _row(strides), tuple((low, high) for low, high in pairs)


def _row(given: object) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, list | tuple) else ()


def _framed(masks: Masks, frame: tuple[int, int]) -> Masks:
    """The masks in a larger picture, at the same place."""
    return Masks.from_crops(masks.crops(), frame)


def _owners(
    masks: Masks, boxes: npt.NDArray[Any], frame: tuple[int, int], grids: Sequence[int], ranges: Sequence[Range]
) -> npt.NDArray[np.int64]:
    sides = (boxes[:, 3:1:-1] - boxes[:, 1::-1]).clip(1)  # (N, 2): height, width
    roots = np.sqrt(sides.prod(1))
    there = masks.areas() > 0
    centres = np.array([_centre(crop) for crop in masks.crops()]).reshape(-1, 2)
    found = []
    for level, (grid, (low, high)) in enumerate(zip(grids, ranges, strict=True)):
        fits = there & ((roots >= low) | (level == 0)) & ((roots <= high) | (level == len(grids) - 1))
        rows = np.flatnonzero(fits)
        rows = rows[np.argsort(-roots[rows], kind="stable")]  # where two want a cell, the smaller object has it
        own, first, last = (
            np.floor((centres[rows] + shift * sides[rows]) * grid / frame).clip(0, grid - 1).astype(np.int64)
            for shift in (0, -CENTRE / 2, CENTRE / 2)
        )
        first, last = np.maximum(first, own - 1), np.minimum(last, own + 1) + 1
        cells = np.full((grid, grid), -1, np.int64)
        for row, (top, left), (bottom, right) in zip(rows, first, last, strict=True):
            cells[top:bottom, left:right] = row
        for row, place in zip(rows, own, strict=True):  # the cell of an object's centre is no other one's neighbour
            cells[tuple(place)] = row
        found.append(cells.ravel())
    return np.concatenate(found)


def _centre(crop: Crop) -> tuple[float, float]:
    """Row and column of a mask's centre of mass, in pixels from the picture's corner; zeros without pixels."""
    top, left, bits = crop
    count = np.count_nonzero(bits)
    if not count:
        return 0.0, 0.0
    rows, columns = bits.sum(1), bits.sum(0)
    return (
        top + 0.5 + float(rows @ np.arange(len(rows))) / count,
        left + 0.5 + float(columns @ np.arange(len(columns))) / count,
    )
