"""The objects of a run as a table: what each measures, in the columns and by the definitions of scikit-image."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kirie.counting import occurrences
from kirie.masks import Crop
from kirie.prediction.picture_files import Run, Write
from kirie.prediction.predicted import Predicted
from kirie.results import Instances

_SHAPE = (
    "area",
    *(f"bbox-{index}" for index in range(4)),
    "centroid-0",
    "centroid-1",
    "equivalent_diameter_area",
    "perimeter",
    "axis_major_length",
    "axis_minor_length",
    "eccentricity",
    "orientation",
    "solidity",
)
_INTENSITIES = ("intensity_mean", "intensity_min", "intensity_max")

# By how many of its neighbours above, below and beside (2 each) and across corners (10 each) belong to the border too,
# the length that a border pixel (1) adds to the perimeter: Benkrid and Crookes, "Design and FPGA implementation of a
# perimeter estimator", 2000.
_LENGTHS = np.zeros(50)
_LENGTHS[[5, 7, 15, 17, 25, 27]] = 1
_LENGTHS[[21, 33]] = math.sqrt(2)
_LENGTHS[[13, 23]] = (1 + math.sqrt(2)) / 2
_NEIGHBOURS = np.array([[10, 2, 10], [2, 1, 2], [10, 2, 10]], np.uint8)


@contextmanager
def object_table(run: Run) -> Iterator[Write]:
    """Writes `objects.csv`, a row per object, and `counts.csv`, a row per picture with how many it has of each class.

    The columns of an object are the picture, `label` (its number in the picture, which an id map holds too), class and
    score, and then those of `measured`. Intensities are in the numbers of the picture's file.
    """
    header = ("picture", "label", "class", "score", *columns(run.channels))
    with (
        run.growing.open("objects.csv", _lines([header])) as objects,
        run.growing.open("counts.csv", _lines([("picture", "objects", *run.classes.names)])) as counts,
    ):

        def write(one: Predicted) -> tuple[()]:
            found = np.zeros(len(run.classes), np.int64)
            for part in one.parts():
                if len(part):
                    objects(_lines(_rows(one, part, int(found.sum()) + 1)))
                    found += np.bincount(part.labels, minlength=len(run.classes))
            counts(_lines([(one.title, int(found.sum()), *found.tolist())]))
            return ()

        yield write


def columns(channels: int) -> tuple[str, ...]:
    """The names of what `measured` gives for pictures with so many channels, as `regionprops_table` calls them."""
    return (*_SHAPE, *(f"{name}-{channel}" for name in _INTENSITIES for channel in range(channels)))


def measured(crop: Crop, numbers: npt.NDArray[Any]) -> tuple[float | None, ...]:
    """What an object measures, in pixels and radians: the values of `columns`, None for all but the area of nothing.

    They are those of `skimage.measure.regionprops_table` for the object alone: of the mask as it is, also where another
    object covers it.

    Args:
        crop: the mask, cut to its tightest box.
        numbers: the part of the picture (h, w, C) that the box covers.
    """
    top, left, bits = crop
    if not bits.size:
        return (0, *(None for _ in columns(numbers.shape[2])[1:]))
    bottom, right = top + bits.shape[0], left + bits.shape[1]
    moments = {name: int(value) for name, value in cv2.moments(bits.view(np.uint8), binaryImage=True).items()}
    area, down, across = moments["m00"], moments["m01"], moments["m10"]
    # Variances across and down and the covariance, in whole numbers as far as they go: a square has no direction.
    a = (moments["m20"] * area - across * across) / area**2
    b = (moments["m11"] * area - across * down) / area**2
    c = (moments["m02"] * area - down * down) / area**2
    spread = math.hypot(a - c, 2 * b)
    large, small = (a + c + spread) / 2, max((a + c - spread) / 2, 0.0)
    turned = math.atan2(2 * b, c - a) / 2 if a != c else math.pi / (4 if b > 0 else -4)
    inside = [plane[bits] for plane in np.moveaxis(numbers, 2, 0)]
    return (
        area,
        *(top, left, bottom, right),
        *(top + down / area, left + across / area),
        math.sqrt(4 * area / math.pi),
        _perimeter(bits),
        *(4 * math.sqrt(large), 4 * math.sqrt(small)),
        math.sqrt(1 - small / large) if large else 0.0,
        turned,
        area / convex_area(bits),
        *(value(plane).item() for value in (np.mean, np.min, np.max) for plane in inside),
    )


def _rows(one: Predicted, part: Instances, first: int) -> Iterator[tuple[Any, ...]]:
    """A row for each object of a part, which are numbered from `first` on."""
    for index, crop in enumerate(part.masks.crops()):
        name, score = part.classes.names[part.labels[index]], round(float(part.scores[index]), 6)
        yield (one.title, index + first, name, score, *measured(crop, one.numbers(crop)))


def _perimeter(bits: npt.NDArray[np.bool_]) -> float:
    """The length of the outlines of an object, by a line through the centres of its border pixels."""
    full = np.pad(bits, 1).view(np.uint8)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    border = full - cv2.erode(full, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    around = np.asarray(cv2.filter2D(border, -1, _NEIGHBOURS, borderType=cv2.BORDER_CONSTANT), np.uint8)
    return float(occurrences(around, len(_LENGTHS)) @ _LENGTHS)


def convex_area(bits: npt.NDArray[np.bool_]) -> int:
    """How many pixels have their centre in the convex hull of the middles of all edges of an object's pixels."""
    held = np.flatnonzero(bits.any(1))
    ends = np.stack([bits[held].argmax(1), bits.shape[1] - 1 - bits[held, ::-1].argmax(1)])  # (2, rows)
    points = 2 * np.stack([ends, np.broadcast_to(held, ends.shape)], -1).reshape(-1, 2)  # x, y in half pixels
    middles = np.concatenate([points + step for step in ((1, 0), (-1, 0), (0, 1), (0, -1))])
    hull = np.asarray(cv2.convexHull(middles.astype(np.int32)), np.int64).reshape(-1, 2)
    first = np.full(bits.shape[0], 2 * bits.shape[1])
    last = np.full(bits.shape[0], -2)
    for (x0, y0), (x1, y1) in zip(hull.tolist(), np.roll(hull, -1, 0).tolist(), strict=True):
        if y0 == y1:
            continue  # the edges beside it hold its ends
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        rows = np.arange(max(-(-y0 // 2), 0), min(y1 // 2, bits.shape[0] - 1) + 1)
        over = (2 * rows - y0) * (x1 - x0) + x0 * (y1 - y0)  # the edge's x in each row, times its height
        rise = 2 * (y1 - y0)
        first[rows] = np.minimum(first[rows], -(-over // rise))
        last[rows] = np.maximum(last[rows], over // rise)
    return int(np.maximum(last - first + 1, 0).sum())


def _lines(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
