"""N masks of one picture as a compact column: run lengths or small crops, never N x H x W bits at once.

Run lengths are COCO's (column by column, starting with a run of zeros). Packing them, filling polygons and comparing
masks is left to faster-coco-eval, so files and scores agree with the tools of the field. Reading them is done here: run
lengths from a file are checked before compiled code sees them, and a mask unpacks to its own columns, not the picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco_mask
from scipy import ndimage

from kirie import boxes as box_maths
from kirie.errors import KirieError
from kirie.outlines import Ring, outlines
from kirie.run_lengths import as_bytes, compressed, lengths_of, packed, runs_of, union

Mask = npt.NDArray[np.bool_]

MAX_PIXELS = 2**32 - 1  # run lengths are 32-bit numbers in the tools of the field
MAX_COORDINATE = 1e7  # of a polygon point; whatever lies farther out is no pixel coordinate


class Crop(NamedTuple):
    """One mask cut to its box: `bits` (h, w) bool whose first pixel lies at row `top`, column `left`."""

    top: int
    left: int
    bits: Mask


_EMPTY = Crop(0, 0, np.zeros((0, 0), bool))


@dataclass(frozen=True)
class Masks:
    """N compact masks of one picture; made by the `from_...` constructors.

    Attributes:
        size: (H, W) of the picture.
        items: per mask either a `Crop` or the compressed COCO run lengths as bytes.

    Raises:
        KirieError: when the picture is empty or too large for run lengths, or a crop is not bool or leaves the picture.
    """

    size: tuple[int, int]
    items: tuple[Crop | bytes, ...] = ()

    def __post_init__(self) -> None:
        height, width = int(self.size[0]), int(self.size[1])
        object.__setattr__(self, "size", (height, width))
        object.__setattr__(self, "items", tuple(self.items))
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise KirieError(f"Masks need a picture of 1 to {MAX_PIXELS} pixels, got size (H, W) = {self.size}.")
        for item in self.items:
            if isinstance(item, bytes):
                continue
            if item.bits.ndim != 2 or item.bits.dtype != np.bool_:
                raise KirieError(f"A crop holds (h, w) bool bits, got {item.bits.dtype} {item.bits.shape}.")
            bottom, right = item.top + item.bits.shape[0], item.left + item.bits.shape[1]
            if item.top < 0 or item.left < 0 or bottom > height or right > width:
                raise KirieError(
                    f"A crop at row {item.top}, column {item.left} of {item.bits.shape} leaves the picture {self.size}."
                )

    @classmethod
    def from_crops(cls, crops: Iterable[Crop], size: tuple[int, int]) -> Masks:
        """Masks from crops that lie inside a picture of `size` (H, W)."""
        return cls(size, tuple(Crop(int(c[0]), int(c[1]), np.asarray(c[2])) for c in crops))

    @classmethod
    def from_dense(cls, masks: npt.NDArray[Any]) -> Masks:
        """Masks from an (N, H, W) bool or 0/1 array."""
        masks = np.asarray(masks)
        if masks.ndim != 3:
            raise KirieError(f"Expected masks of shape (N, H, W), got {masks.shape}.")
        return cls(masks.shape[1:], tuple(_cut(mask.astype(bool)) for mask in masks))

    @classmethod
    def from_ids(cls, ids: npt.NDArray[Any], order: Sequence[int] | None = None) -> Masks:
        """Masks of the instances in an (H, W) id map, 0 meaning none.

        Args:
            ids: (H, W) whole numbers.
            order: the ids to take, one mask each (empty where an id does not occur); the ascending ids that occur,
                without 0, when not given.
        """
        size = (int(ids.shape[0]), int(ids.shape[1]))
        known, rank = rank_ids(ids)
        found = dict(zip(known.tolist(), ndimage.find_objects(rank + 1, len(known)), strict=True))
        wanted = [i for i in found if i != 0] if order is None else [int(i) for i in order]
        crops = []
        for value in wanted:
            place = found.get(value)
            crops.append(_EMPTY if place is None else Crop(place[0].start, place[1].start, ids[place] == value))
        return cls(size, tuple(crops))

    @classmethod
    def from_rles(cls, rles: Iterable[dict[str, Any]], size: tuple[int, int]) -> Masks:
        """Masks from COCO run lengths, compressed (`counts` str or bytes) or not (`counts` a list of whole numbers).

        Raises:
            KirieError: when a `size` differs from the picture's or the counts are not run lengths of that size.
        """
        return cls(size, tuple(_compressed(rle, size) for rle in rles))

    @classmethod
    def from_polygons(cls, polygons: Iterable[Sequence[Sequence[float]]], size: tuple[int, int]) -> Masks:
        """Masks from COCO polygons: per mask a list of flat rings [x1, y1, x2, y2, ...], filled as COCO fills them.

        Rings of fewer than three points cover nothing and are left out.

        Raises:
            KirieError: when a ring is not pairs of finite numbers, or is so long that it cannot outline an object.
        """
        items: list[Crop | bytes] = []
        for rings in polygons:
            kept = [ring for ring in (_ring(ring, size) for ring in rings) if len(ring) >= 6]
            if not kept:
                items.append(_EMPTY)
                continue
            parts: Any = coco_mask.frPyObjects(kept, size[0], size[1])
            items.append(union([as_bytes(part["counts"]) for part in parts], size))
        return cls(size, tuple(items))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Masks:
        """The masks that a slice, an array of whole numbers or an (N,) bool array selects."""
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return Masks(self.size, tuple(self.items[i] for i in chosen))

    def __iter__(self) -> Iterator[Mask]:
        """Each mask in turn as an (H, W) bool array; only one exists at a time."""
        for item in self.items:
            yield _paste(item, self.size)

    def crops(self) -> list[Crop]:
        """The masks as crops, each cut to its tightest box (an empty mask has 0 x 0 bits)."""
        return [_tight(item) if isinstance(item, Crop) else _decode(item, self.size) for item in self.items]

    def rles(self) -> list[dict[str, Any]]:
        """The masks as compressed COCO run lengths: {"size": [H, W], "counts": bytes}."""
        height, width = self.size
        counts = [item if isinstance(item, bytes) else _encode(item, self.size) for item in self.items]
        return [{"size": [height, width], "counts": each} for each in counts]

    def dense(self) -> Mask:
        """All masks as one (N, H, W) bool array. Memory grows with N x H x W: iterate or use `crops` where you can."""
        out = np.zeros((len(self), *self.size), bool)
        for mask, item in zip(out, self.items, strict=True):
            mask[:] = _paste(item, self.size)
        return out

    def between(self, top: int, bottom: int) -> list[Crop]:
        """The part of each mask in the rows from `top` up to `bottom`, as crops; memory does not grow with the rest."""
        return [
            _decode_rows(item, self.size, top, bottom) if isinstance(item, bytes) else _rows(item, top, bottom)
            for item in self.items
        ]

    def areas(self) -> npt.NDArray[np.int64]:
        """Pixels of each mask, (N,) int64."""
        areas = [i.bits.sum() if isinstance(i, Crop) else lengths_of(i)[1::2].sum() for i in self.items]
        return np.array(areas, np.int64)

    def boxes(self) -> box_maths.Boxes:
        """The tightest box of each mask, (N, 4) float32 xyxy pixel edges; zeros for an empty mask."""
        out = np.zeros((len(self), 4), np.float32)
        for row, item in zip(out, self.items, strict=True):
            row[:] = _box(item, self.size[0]) or (0, 0, 0, 0)
        return out

    def iou(self, other: Masks) -> npt.NDArray[np.float64]:
        """IoU (N, M) of every mask with every mask of `other`; 0 where both are empty.

        Raises:
            KirieError: when the two columns belong to pictures of different size.
        """
        if self.size != other.size:
            raise KirieError(f"Masks of pictures of size {self.size} and {other.size} cannot be compared.")
        if not len(self) or not len(other):
            return np.zeros((len(self), len(other)))
        table = np.asarray(coco_mask.iou(self.rles(), other.rles(), [0] * len(other)), np.float64)
        return np.nan_to_num(table.reshape(len(self), len(other)))

    def polygons(self) -> list[list[Ring]]:
        """The outlines of each mask, a ring (P, 2) of x, y pixel edges for each part; see `outlines`.

        `from_polygons` gives the masks back from them, each ring written flat.
        """
        return [outlines(*crop) for crop in self.crops()]

    def id_map(self, ids: Sequence[int] | None = None) -> npt.NDArray[np.int32]:
        """One (H, W) int32 map with id i + 1 (or `ids[i]`) where mask i lies; a later mask covers an earlier one."""
        out = np.zeros(self.size, np.int32)
        for index, (top, left, bits) in enumerate(self.crops()):
            view = out[top : top + bits.shape[0], left : left + bits.shape[1]]
            view[bits] = index + 1 if ids is None else ids[index]
        return out


def overlap_table(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[Any, Any, npt.NDArray[np.int64]]:
    """How many pixels each id of one id map shares with each id of another.

    Args:
        a: (H, W) whole numbers.
        b: (H, W) whole numbers.

    Returns:
        The ids of `a` (N,), the ids of `b` (M,), both ascending, and the (N, M) pixel counts.
    """
    if a.shape != b.shape:
        raise KirieError(f"Id maps of different shape {a.shape} and {b.shape} cannot be compared.")
    ids_a, rank_a = rank_ids(a)
    ids_b, rank_b = rank_ids(b)
    code = rank_a.ravel().astype(np.int64) * len(ids_b) + rank_b.ravel()
    counts = np.bincount(code, minlength=len(ids_a) * len(ids_b))
    return ids_a, ids_b, counts.reshape(len(ids_a), len(ids_b)).astype(np.int64)


def count_ids(ids: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids that occur in a map of whole numbers, ascending (N,), and the pixels of each (N,)."""
    if not _is_dense(ids):
        found, counts = np.unique(ids, return_counts=True)
        return found.astype(np.int64), counts.astype(np.int64)
    counts = np.bincount(ids.ravel().astype(np.int64, copy=False))
    found = np.flatnonzero(counts)
    return found, counts[found]


def rank_ids(ids: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The ids that occur in a map of whole numbers, ascending (N,), and the map with their ranks 0..N-1 instead."""
    if not _is_dense(ids):
        found, rank = np.unique(ids, return_inverse=True)
        return found.astype(np.int64), rank.reshape(ids.shape).astype(np.int32)
    found, _ = count_ids(ids)
    table = np.zeros(int(found[-1]) + 1, np.int32)
    table[found] = np.arange(len(found))
    rank = table[ids]
    return found, rank


def _is_dense(ids: npt.NDArray[Any]) -> bool:
    """Whether the ids are small enough that counting them in a table is cheaper than sorting the map."""
    return ids.size > 0 and int(ids.min()) >= 0 and int(ids.max()) < 4 * ids.size + 65536


def _cut(mask: Mask) -> Crop:
    box = box_maths.of_mask(mask)
    if box is None:
        return _EMPTY
    left, top, right, bottom = box
    return Crop(top, left, mask[top:bottom, left:right].copy())


def _tight(crop: Crop) -> Crop:
    inner = _cut(crop.bits)
    if not inner.bits.size:
        return inner
    return Crop(crop.top + inner.top, crop.left + inner.left, inner.bits)


def _box(item: Crop | bytes, height: int) -> tuple[int, int, int, int] | None:
    """The tightest box (left, top, right, bottom) of a mask in a picture `height` pixels high; None when empty."""
    if isinstance(item, Crop):
        box = box_maths.of_mask(item.bits)
        return box and (box[0] + item.left, box[1] + item.top, box[2] + item.left, box[3] + item.top)
    starts, ends = runs_of(item)
    if not len(starts):
        return None
    first, last = starts // height, (ends - 1) // height  # columns
    if (first < last).any():  # a run that goes on in the next column touches both edges
        return int(first[0]), 0, int(last[-1]) + 1, height
    return int(first[0]), int((starts % height).min()), int(last[-1]) + 1, int(((ends - 1) % height).max()) + 1


def _paste(item: Crop | bytes, size: tuple[int, int]) -> Mask:
    top, left, bits = item if isinstance(item, Crop) else _decode(item, size)
    out = np.zeros(size, bool)
    out[top : top + bits.shape[0], left : left + bits.shape[1]] = bits
    return out


def _decode(counts: bytes, size: tuple[int, int]) -> Crop:
    """The crop that run lengths stand for, without making the picture."""
    box = _box(counts, size[0])
    if box is None:
        return _EMPTY
    left, top, right, bottom = box
    starts, ends = runs_of(counts)
    width, height = right - left, bottom - top
    column, row = np.divmod(starts, size[0])
    first = (column - left) * height + row - top  # also of a run over several columns: then the box is the whole height
    edges = np.stack([first, first + ends - starts], 1).ravel()
    lengths = np.diff(edges, prepend=0, append=width * height)
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height)
    return Crop(top, left, np.ascontiguousarray(columns.T))


def _decode_rows(counts: bytes, size: tuple[int, int], top: int, bottom: int) -> Crop:
    """The part of a mask in the rows from `top` up to `bottom`, without making the rest."""
    starts, ends = runs_of(counts)
    first = starts // size[0]
    columns = (ends - 1) // size[0] - first + 1  # a run may go on in the next ones
    column = np.repeat(first - np.cumsum(columns) + columns, columns) + np.arange(columns.sum())
    begin = np.maximum(np.repeat(starts, columns) - column * size[0], top)
    end = np.minimum(np.repeat(ends, columns) - column * size[0], min(size[0], bottom))
    there = end > begin
    if not there.any():
        return _EMPTY
    begin, end, column = begin[there], end[there], column[there]
    upper, left = int(begin.min()), int(column.min())
    edges = np.zeros((int(end.max()) - upper + 1, int(column.max()) - left + 1), np.int8)
    np.add.at(edges, (begin - upper, column - left), 1)
    np.add.at(edges, (end - upper, column - left), -1)
    return Crop(upper, left, edges[:-1].cumsum(0, dtype=np.int8).astype(bool))


def _rows(crop: Crop, top: int, bottom: int) -> Crop:
    first, last = max(top - crop.top, 0), max(bottom - crop.top, 0)
    return Crop(crop.top + first, crop.left, crop.bits[first:last])


def _encode(crop: Crop, size: tuple[int, int]) -> bytes:
    """Run lengths of a crop placed in its picture, without making the picture."""
    height = size[0]
    h, w = crop.bits.shape
    columns = np.zeros((w, h + 1), bool)  # each ends with a zero, so that no run goes on in the next
    columns[:, :h] = crop.bits.T
    column, row = np.divmod(np.flatnonzero(np.diff(columns.ravel(), prepend=False)), h + 1)
    edges = (crop.left + column) * height + crop.top + row  # start, end, start, end...
    # A run that ends at the bottom edge and one that starts at the top of the next column are one run.
    same = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([same, same + 1]))
    return packed(edges, size)


def _compressed(rle: dict[str, Any], size: tuple[int, int]) -> bytes:
    height, width = size
    if not isinstance(rle, dict) or "counts" not in rle:
        raise KirieError(f"Expected run lengths as a dict with `size` and `counts`, got {type(rle).__name__}.")
    stated = rle.get("size", size)
    if not isinstance(stated, list | tuple) or tuple(stated) != (height, width):
        raise KirieError(f"Run lengths are for a picture of size {stated}, expected [H, W] = {[height, width]}.")
    counts = rle["counts"]
    if isinstance(counts, list):
        lengths = _whole_numbers(counts)
    elif isinstance(counts, bytes) or (isinstance(counts, str) and counts.isascii()):
        lengths = lengths_of(as_bytes(counts))
    else:
        raise KirieError(f"Run lengths are a list of whole numbers or COCO's string, got {str(counts)[:40]!r}.")
    if (lengths < 0).any() or (lengths > height * width).any() or lengths.sum() != height * width:
        raise KirieError(f"Run lengths must be 0 or more and add up to {height} x {width} pixels; these do not.")
    return compressed(lengths.tolist(), size) if isinstance(counts, list) else as_bytes(counts)


def _whole_numbers(counts: list[Any]) -> npt.NDArray[np.int64]:
    if not counts or not all(type(c) is int and 0 <= c <= MAX_PIXELS for c in counts):
        raise KirieError("Run lengths must be a list of whole numbers, none below 0, that add up to the picture.")
    return np.array(counts, np.int64)


def _ring(ring: Sequence[float], size: tuple[int, int]) -> list[float]:
    """A flat ring as floats, refused where filling it would take memory without bound."""
    try:
        points = np.asarray(ring, np.float64)
    except (TypeError, ValueError):
        raise KirieError(f"A polygon ring is a flat list of numbers x1, y1, x2, y2..., got {str(ring)[:60]}.") from None
    if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all() or (np.abs(points) > MAX_COORDINATE).any():
        raise KirieError(
            f"A polygon ring is a flat list of pixel coordinates x1, y1, x2, y2..., got {str(ring)[:60]} "
            f"({points.size} numbers)."
        )
    pairs = points.reshape(-1, 2)
    length = np.abs(pairs - np.roll(pairs, 1, 0)).max(1).sum()
    if length > 256 * (size[0] + size[1]):
        raise KirieError(
            f"A polygon ring is {length:.0f} pixels long, too much for a picture of size {size}. Check that its "
            "coordinates are pixels of this picture."
        )
    flat: list[float] = points.tolist()
    return flat
