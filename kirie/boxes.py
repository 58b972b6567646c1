"""Boxes as (N, 4) float arrays of pixel edges, `xyxy`: a pixel at column 3, row 5 has the box [3, 5, 4, 6]."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]


def areas(boxes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Areas (N,) in pixels of (N, 4) boxes; a box turned inside out has area 0."""
    sides = np.clip(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0, None)
    area: npt.NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return area


def iou_matrix(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """IoU (N, M) of every box of `a` (N, 4) with every box of `b` (M, 4); 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2]).astype(np.float64)  # (N, M, 2)
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (N, M, 2)
    overlap = np.clip(high - low, 0, None).prod(2)  # (N, M)
    union = areas(a)[:, None] + areas(b)[None, :] - overlap
    iou: npt.NDArray[np.float64] = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def clip(boxes: npt.NDArray[Any], size: tuple[int, int]) -> Boxes:
    """Boxes (N, 4) cut to a picture of `size` (H, W)."""
    height, width = size
    clipped: Boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    return clipped


def to_xywh(boxes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """COCO's left, top, width, height (N, 4) from boxes `xyxy`."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def of_mask(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """The tightest box (left, top, right, bottom) round the True pixels of an (H, W) mask; None when there are none."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
