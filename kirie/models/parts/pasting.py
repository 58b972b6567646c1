"""From small maps of probabilities to masks at a picture's size and back, one instance at a time.

Bilinear sampling is linear along each axis, so it is a matrix per axis: a mask of (P, Q) pixels is `rows @ map @
columns.T`, with `rows` (P, h) and `columns` (Q, w). Matrices of several steps multiply, and those of a part of the
picture are some of the rows. So no mask is ever made larger than its own box, and a map of a box (Mask R-CNN) and one of
the whole picture (YOLACT, SOLOv2) are enlarged in one way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.masks import Crop, Masks

Matrix = npt.NDArray[np.float32]


def resize_matrix(pixels: int, cells: int) -> Matrix:
    """(pixels, cells): the bilinear resize of `cells` to `pixels` values, outermost ones going on beyond the edge.

    The same as PyTorch's `interpolate(mode="bilinear", align_corners=False)` along one axis.
    """
    places = (np.arange(pixels) + 0.5) * (cells / pixels) - 0.5
    return _taps(places.clip(0, cells - 1), cells)


def box_matrix(start: float, end: float, cells: int, first: int, last: int) -> Matrix:
    """(last - first, cells): a map that spans `start`..`end` as the centres of the pixels first..last - 1 see it.

    Bilinear, zero outside of the map: along one axis the same as PyTorch's `grid_sample(align_corners=False)`.

    Args:
        start: where the map begins, in pixels.
        end: where it ends, above `start`.
        cells: of the map.
        first: the first pixel.
        last: the pixel after the last one.
    """
    places = (np.arange(first, last) + 0.5 - start) * (cells / (end - start)) - 0.5
    return _taps(places, cells)


def area_matrix(cells: int, pixels: int, first: int, last: int) -> Matrix:
    """(cells, last - first): the share of each cell that each of the pixels first..last - 1 fills, of `pixels` in all.

    Cells divide the pixels evenly, and need not be whole numbers of them.
    """
    edges = np.linspace(0, pixels, cells + 1)
    low, high = edges[:-1, None], edges[1:, None]
    place = np.arange(first, last)[None]
    overlap = np.minimum(high, place + 1) - np.maximum(low, place)
    return (overlap.clip(0) / (high - low)).astype(np.float32)


def cut_mask(
    cells: npt.NDArray[Any], rows: Matrix, columns: Matrix, *, corner: tuple[int, int] = (0, 0), threshold: float = 0.5
) -> Crop:
    """The pixels in which a map of probabilities lies above a threshold.

    Args:
        cells: (h, w), at least 0.
        rows: (P, h), of `resize_matrix` or `box_matrix`; no row sums to more than 1.
        columns: (Q, w), likewise.
        corner: row and column of the picture at which the first of the P x Q pixels lies.
        threshold: a pixel belongs to the mask where its probability is above it.
    """
    # A pixel is above the threshold only if one of the cells that it is made of is.
    above = cells > threshold
    top, bottom = _reach(rows, above.any(1))
    left, right = _reach(columns, above.any(0))
    rows, columns = rows[top:bottom], columns[left:right]
    (up, down), (near, far) = _used(rows), _used(columns)
    part = np.ascontiguousarray(cells[up:down, near:far], np.float32)
    bits = rows[:, up:down] @ part @ columns[:, near:far].T > threshold
    return Crop(corner[0] + top, corner[1] + left, bits)


def cut_masks(maps: npt.NDArray[Any], rows: Matrix, columns: Matrix, *, threshold: float = 0.5) -> Masks:
    """Masks of (N, h, w) maps that cover the whole picture, each enlarged by itself; see `cut_mask`."""
    size = (len(rows), len(columns))
    return Masks.from_crops((cut_mask(each, rows, columns, threshold=threshold) for each in maps), size)


def shrunk(masks: Masks, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """The share of each cell that each mask covers, (N, h, w) float32 in [0, 1], for `size` (h, w) cells.

    Made from the masks' own boxes: no mask is unpacked to its picture.
    """
    out = np.zeros((len(masks), *size), np.float32)
    for cells, (top, left, bits) in zip(out, masks.crops(), strict=True):
        if not bits.size:
            continue
        rows = area_matrix(size[0], masks.size[0], top, top + bits.shape[0])
        columns = area_matrix(size[1], masks.size[1], left, left + bits.shape[1])
        (up, down), (near, far) = _used(rows.T), _used(columns.T)
        cells[up:down, near:far] = rows[up:down] @ bits.astype(np.float32) @ columns[near:far].T
    return out


def _taps(places: npt.NDArray[Any], cells: int) -> Matrix:
    """(pixels, cells) with the two weights of each place between cells; those outside 0..cells - 1 fall away."""
    low = np.floor(places).astype(np.int64)
    share = (places - low).astype(np.float32)
    out = np.zeros((len(places), cells), np.float32)
    pixels = np.arange(len(places))
    for cell, weight in ((low, 1 - share), (low + 1, share)):
        inside = (cell >= 0) & (cell < cells)
        out[pixels[inside], cell[inside]] += weight[inside]
    return out


def _reach(matrix: Matrix, cells: Any) -> tuple[int, int]:
    """First and last + 1 of the rows of a matrix that any of the flagged cells reaches; (0, 0) for none."""
    reached = np.flatnonzero((matrix[:, cells] > 0).any(1))
    return (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 0)


def _used(matrix: Matrix) -> tuple[int, int]:
    """First and last + 1 of the columns that a matrix uses."""
    return _reach(matrix.T, np.ones(len(matrix), bool))
