"""From small maps of probabilities to masks at a picture's size and back, one instance at a time.

Bilinear sampling is linear along each axis, so it is a matrix per axis: a mask of (P, Q) pixels is `rows @ map @
columns.T`, with `rows` (P, h) and `columns` (Q, w). Matrices of several steps multiply, and those of a part of the
picture are some of the rows. So no mask is ever made larger than its own box, and maps of a box (Mask R-CNN) and of
the whole picture (YOLACT, SOLOv2) are enlarged in one way.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.masks import Crop, Masks

Matrix = npt.NDArray[np.float32]

_BELOW_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))  # a half is above it, in float32

_TILE = 2**18  # multiplications; OpenBLAS shares out what takes more among threads
PACKED = 2**16  # pixels of a crop from which on run lengths are kept in its place


def resize_matrix(pixels: int, cells: int, covered: float | None = None) -> Matrix:
    """(pixels, cells): the bilinear resize of `cells` to `pixels` values, outermost ones going on beyond the edge.

    The same as PyTorch's `interpolate(mode="bilinear", align_corners=False)` along one axis. Where the pixels end
    before the cells do, as after padding, `covered` says how many cells they cover.
    """
    return _taps(_resized(pixels, cells, covered), cells)


def resized_twice(pixels: int, cells: int, first: Matrix) -> Matrix:
    """`resize_matrix(pixels, cells) @ first` for `first` (cells, n): of each row only its two taps are multiplied."""
    places = _resized(pixels, cells)
    low = np.floor(places).astype(np.int64)
    share = (places - low).astype(np.float32)[:, None]
    high = np.minimum(low + 1, cells - 1)
    return (1 - share) * first[low] + share * first[high]


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
    bits = _product(_product(rows[:, up:down], part), columns[:, near:far].T) > threshold
    return Crop(corner[0] + top, corner[1] + left, bits)


def cut_masks(maps: npt.NDArray[Any], rows: Matrix, columns: Matrix, *, threshold: float = 0.5) -> Masks:
    """Masks of (N, h, w) maps that cover the whole picture, each enlarged by itself; see `cut_mask`.

    Large ones are packed as run lengths at once: many of them as bits may not fit into memory.
    """
    size = (len(rows), len(columns))
    return Masks(size, tuple(_packed(cut_mask(each, rows, columns, threshold=threshold), size) for each in maps))


def cut_boxes(
    maps: npt.NDArray[Any], boxes: npt.NDArray[Any], size: tuple[int, int], *, whole_pixels: bool = False
) -> Masks:
    """Masks of (N, h, w) maps of probabilities that each span a box, of pixels with a probability of a half.

    Args:
        maps: of numbers in [0, 1].
        boxes: (N, 4) `xyxy` in pixels of the picture.
        size: (H, W) of the picture.
        whole_pixels: as in torchvision: maps with a rim of zeros in boxes that are larger by as much, cut off to whole
            pixels; and the probability must be above a half.

    Large ones are packed as run lengths at once.
    """
    if whole_pixels:
        maps = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
        boxes = _with_rim(boxes, (maps.shape[1], maps.shape[2]))
    threshold = 0.5 if whole_pixels else _BELOW_HALF
    crops = (_cut_box(*each, size, threshold) for each in zip(maps, boxes, strict=True))
    return Masks(size, tuple(_packed(crop, size) for crop in crops))


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
        cells[up:down, near:far] = _product(_product(rows[up:down], bits.astype(np.float32)), columns[near:far].T)
    return out


def on_cells(masks: Masks, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The cells that each mask covers by more than half, or by the most where by none so far; (N, h, w) bool.

    So no mask with a pixel vanishes, however small it is.
    """
    out = np.zeros((len(masks), *size), bool)
    for index, cells in enumerate(out):
        shares = shrunk(masks[index], size)[0]
        np.greater(shares, min(0.5, float(shares.max()) * 0.999), out=cells)
    return out


def _with_rim(boxes: npt.NDArray[Any], cells: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Boxes (N, 4) of whole pixels that maps of `cells` span when boxes were those of maps without their rim."""
    tall, wide = (count / (count - 2) for count in cells)
    boxes = boxes.astype(np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * np.array([wide, tall], np.float32)
    first, last = np.trunc(centres - half), np.trunc(centres + half)
    return np.concatenate([first, np.maximum(last, first) + 1], 1).astype(np.float64)


def _cut_box(cells: npt.NDArray[Any], box: npt.NDArray[Any], size: tuple[int, int], threshold: float) -> Crop:
    left, top, right, bottom = box.tolist()
    first = max(math.floor(top), 0), max(math.floor(left), 0)
    last = min(math.ceil(bottom), size[0]), min(math.ceil(right), size[1])
    if first[0] >= last[0] or first[1] >= last[1] or not (top < bottom and left < right):
        return Crop(0, 0, np.zeros((0, 0), bool))
    rows = box_matrix(top, bottom, cells.shape[0], first[0], last[0])
    columns = box_matrix(left, right, cells.shape[1], first[1], last[1])
    return cut_mask(cells, rows, columns, corner=first, threshold=threshold)


def _packed(crop: Crop, size: tuple[int, int]) -> Crop | bytes:
    """A crop as it is, or run lengths where it is large."""
    if crop.bits.size <= PACKED:
        return crop
    counts: bytes = Masks(size, (crop,)).rles()[0]["counts"]
    return counts


def _product(a: Matrix, b: Matrix) -> Matrix:
    """`a @ b` in one thread: threads gain little on such matrices, and lose much where the network's are waiting."""
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    inner = max(a.shape[1], 1)
    wide = max(1, min(b.shape[1], _TILE // (16 * inner)))
    tall = max(1, _TILE // (wide * inner))
    for left in range(0, b.shape[1], wide):
        right = np.ascontiguousarray(b[:, left : left + wide])
        for top in range(0, a.shape[0], tall):
            np.matmul(a[top : top + tall], right, out=out[top : top + tall, left : left + wide])
    return out


def _resized(pixels: int, cells: int, covered: float | None = None) -> npt.NDArray[np.float64]:
    """Where the centres of pixels lie between cells, from 0 to `cells` - 1."""
    places = (np.arange(pixels) + 0.5) * ((covered or cells) / pixels) - 0.5
    return places.clip(0, cells - 1)


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
