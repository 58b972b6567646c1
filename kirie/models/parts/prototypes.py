"""Masks as weighted sums of prototypes: cut off at their boxes, and what one picture teaches them.

Bolya et al., "YOLACT: Real-time Instance Segmentation", ICCV 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from kirie.masks import Masks
from kirie.models.parts.pasting import on_cells
from kirie.results import Instances

AT_ONCE = 100  # masks of a picture that are learned in one step


def assembled(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """The logits (N, h, w) of masks with coefficients (N, M) of prototypes (M, h, w)."""
    return (coefficients @ prototypes.flatten(1)).reshape(-1, *prototypes.shape[1:])


def inside(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which rows (N, h, 1) and which columns (N, 1, w) lie in boxes (N, 4) of cells or one cell beside; bool."""
    first, last = boxes[:, :2].clamp(min=1) - 1, boxes[:, 2:] + 1
    rows, columns = (torch.arange(count, device=boxes.device) for count in (height, width))
    return (
        ((rows >= first[:, 1:]) & (rows < last[:, 1:]))[:, :, None],
        ((columns >= first[:, :1]) & (columns < last[:, :1]))[:, None],
    )


class PictureTruth(NamedTuple):
    """What one picture teaches, its tensors on the model's device.

    Attributes:
        boxes: (N, 4) `xyxy` of the single objects, relative to the picture.
        labels: (N,) int64, 1..K as background is 0.
        crowds: (M, 4), likewise.
        masks: N + M, those of the crowds last, in a picture that the cells cover exactly.
        kinds: (N + M,), their classes 0..K-1.
        covered: (2,), how many cells the picture without padding is wide and high.
    """

    boxes: Tensor
    labels: Tensor
    crowds: Tensor
    masks: Masks
    kinds: npt.NDArray[np.int64]
    covered: Tensor

    @classmethod
    def of(cls, truth: Instances, cells: Sequence[int], covered: Sequence[float], device: torch.device) -> PictureTruth:
        """The truth of a picture over (h, w) `cells`, of which it covers so many and the rest is padding."""
        frame = [round(s * count / part) for s, count, part in zip(truth.size, cells, covered, strict=True)]
        there = (truth.boxes[:, 2:] > truth.boxes[:, :2]).all(1)
        single, crowded = np.flatnonzero(there & ~truth.crowd), np.flatnonzero(there & truth.crowd)
        order = np.concatenate([single, crowded])
        boxes = truth.boxes / np.array([*truth.size[::-1], *truth.size[::-1]], np.float32)
        return cls(
            boxes=torch.from_numpy(boxes[single]).to(device),
            labels=torch.from_numpy(truth.labels[single] + 1).to(device),
            crowds=torch.from_numpy(boxes[crowded]).to(device),
            masks=Masks.from_crops(truth.masks[order].crops(), (frame[0], frame[1])),
            kinds=truth.labels[order],
            covered=torch.tensor([covered[1], covered[0]], dtype=torch.float32, device=device),
        )

    def mask_loss(self, coefficients: Tensor, prototypes: Tensor, rows: Tensor) -> Tensor:
        """The binary cross entropy within the boxes of objects, divided by their areas in cells; the sum of it.

        Of more than `AT_ONCE` so many are drawn, which count for all.

        Args:
            coefficients: (N, M).
            prototypes: (M, h, w).
            rows: (N,), which object each is to be.
        """
        count = len(rows)
        if count > AT_ONCE:
            drawn = torch.randperm(count, device=rows.device)[:AT_ONCE]
            coefficients, rows = coefficients[drawn], rows[drawn]
        used, places = np.unique(rows.cpu().numpy(), return_inverse=True)
        masks = torch.from_numpy(on_cells(self.masks[used], (prototypes.shape[1], prototypes.shape[2]))[places]).to(
            prototypes
        )
        boxes = self.boxes[rows] * self.covered.repeat(2)
        down, across = inside(boxes, *prototypes.shape[1:])
        logits = assembled(coefficients, prototypes)
        losses = F.binary_cross_entropy_with_logits(logits, masks, reduction="none") * (down & across)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1)
        return (losses.sum((1, 2)) / areas).sum() * (count / max(len(rows), 1))

    def semantic_loss(self, logits: Tensor) -> Tensor:
        """The binary cross entropy of classes per pixel (K, h, w), summed; cells of crowds are left out."""
        there, crowded = np.zeros((2, *logits.shape), bool)
        for index, label in enumerate(self.kinds):
            plane = there if index < len(self.boxes) else crowded
            plane[label] |= on_cells(self.masks[index], (logits.shape[1], logits.shape[2]))[0]
        counted, truth = (torch.from_numpy(part).to(logits) for part in (there | ~crowded, there))
        return (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * counted).sum()
