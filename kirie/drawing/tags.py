"""Words on a picture: beside what they name, never over one another, left away where there is no place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kirie import boxes as box_maths
from kirie.drawing.palette import Color, ink
from kirie.drawing.picture import Font, font_for, plain, shorten

_CROWD = 30  # objects from which on small ones go without box and words

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Tag:
    """Words to write on a picture.

    Attributes:
        text: name and score; its middle is cut when it is too long.
        color: RGB of the plate behind the words.
        box: of the object that the words stand at; or one point twice, round which they stand.
    """

    text: str
    color: Color
    box: Box


def write_tags(image: Image.Image, tags: Sequence[Tag]) -> None:
    """Writes tags on an image, in place, the first ones first; one that finds no free place is left out.

    Of the free places at an object the one is taken that hides least of the others. Pictures too small for words get
    none.
    """
    size = _letter(image.width, image.height)
    pad = max(2, size // 5)
    if size + 2 * pad > 0.4 * min(image.size):
        return
    pen = ImageDraw.Draw(image)
    objects = np.array([tag.box for tag in tags], np.float64).reshape(-1, 4)
    areas = np.maximum(box_maths.areas(objects), 1)
    small = too_small(objects, (image.height, image.width))
    taken = np.zeros((0, 4))
    for index, tag in enumerate(tags):
        if small[index]:
            continue
        font = font_for(text := plain(tag.text), size)
        left, _, right, _ = tag.box
        text = shorten(text, font, min(max(1.5 * (right - left), 9 * size), image.width - 2 * pad))
        width, height = font.getlength(text) + 2 * pad, size + 2 * pad
        places = _places(tag.box, width, height)
        places = np.clip(places, 0, [image.width - width, image.height - height])
        plates = np.concatenate([places, places + np.array([width, height])], 1)
        hidden = _overlaps(plates, objects) / areas
        hidden[:, index] = 0
        cost = hidden.sum(1) + 0.02 * np.arange(len(plates))  # the earlier the better, all else being equal
        cost[(_overlaps(plates, taken) > 0).any(1)] = np.inf
        best = int(cost.argmin())
        if np.isfinite(cost[best]):
            taken = np.concatenate([taken, plates[best : best + 1]])
            _write(pen, text, font, plates[best], pad, tag.color)


def too_small(boxes: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which objects (N,) go without box and words on a picture of `size` (H, W), as these would hide too much.

    Those are the ones smaller than words among many objects, and the more there are the larger the others must be. A
    box (N, 4) of no size is a point and never too small.
    """
    crowd = len(boxes) / _CROWD
    least = 6 * _letter(*size) ** 2 * crowd if crowd > 1 else 0
    return (box_maths.areas(boxes) < least) & (boxes[:, 0] < boxes[:, 2])


def _letter(height: int, width: int) -> int:
    """How many pixels high letters are on a picture."""
    return max(11, round(math.sqrt(height * width) / 65))


def _write(
    pen: ImageDraw.ImageDraw, text: str, font: Font, plate: npt.NDArray[np.float64], pad: int, color: Color
) -> None:
    left, top, _, bottom = plate.tolist()
    pen.rounded_rectangle(plate.tolist(), pad, fill=color)
    pen.text((left + pad, (top + bottom) / 2), text, fill=ink(color), font=font, anchor="lm")


def _places(box: Box, width: float, height: float) -> npt.NDArray[np.float64]:
    """Where words of a size may stand, (P, 2) left and top with the best place first."""
    left, top, right, bottom = box
    if left == right:
        return np.array([(left - width / 2, top - height / 2)])
    middle, end = (left + right - width) / 2, right - width
    rows = (top - height - 1, top, bottom + 1, bottom - height, (top + bottom - height) / 2)
    return np.array([(x, y) for y in rows for x in (left, middle, end)] + [(right + 1, top), (left - width - 1, top)])


def _overlaps(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The area (N, M) that each box of `a` (N, 4) shares with each of `b` (M, 4)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared: npt.NDArray[np.float64] = np.clip(high - low, 0, None).prod(2)
    return shared
