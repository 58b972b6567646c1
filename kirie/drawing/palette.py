"""Colours of objects: near that of their class, and unlike those of the objects beside them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kirie.classes import Classes

Color = tuple[int, int, int]

_GOLDEN = 0.61803398875
_SHADES = 24  # that one class has for its objects
_UNLIKE = 30.0  # distance in CIELAB from which on two colours beside each other are told apart at a glance


def object_colors(
    labels: Sequence[int], classes: Classes, beside: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.uint8]:
    """A colour (N, 3) for each object: that of its class for the first of a class, and shades of it for the others.

    The fewer classes there are, the wider is the share of the hue circle that the objects of one have.

    Args:
        labels: the class id of each object.
        classes: with the colours.
        beside: (M, 2) pairs of objects that lie beside each other and get colours as different as there are.
    """
    foreground = len(classes) - classes.has_background
    share = max(0.85 / max(foreground, 1), 0.16)
    neighbours: list[list[int]] = [[] for _ in labels]
    for one, other in () if beside is None else beside.tolist():
        neighbours[max(one, other)].append(min(one, other))
    seen: dict[int, int] = {}
    colors = np.zeros((len(labels), 3), np.uint8)
    labs = np.zeros((len(labels), 3), np.float32)
    for row, label in enumerate(labels):
        turn = seen.get(label, 0)
        seen[label] = turn + 1
        shades, their_labs = _shades(classes.colors[label], share)
        # From the turn on, so that objects differ where nothing is beside them too.
        order = (turn + np.arange(_SHADES)) % _SHADES
        apart = np.linalg.norm(their_labs[order, None] - labs[neighbours[row]][None], axis=2)  # (shades, neighbours)
        nearest = np.minimum(apart.min(1, initial=np.inf), _UNLIKE)
        best = order[int(nearest.argmax())]
        colors[row], labs[row] = shades[best], their_labs[best]
    return colors


@lru_cache(maxsize=1024)
def _shades(color: Color, share: float) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The colours (S, 3) of a class's objects, the class's own first, and their places in CIELAB (S, 3)."""
    shades = np.array([_varied(color, turn, share) for turn in range(_SHADES)], np.uint8)
    labs: Any = cv2.cvtColor(shades[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return shades, labs


def legend_color(label: int, classes: Classes) -> Color:
    """The colour that stands for the objects of a class: that of the first of them."""
    return rgb(object_colors([label], classes)[0])


def _varied(color: Color, turn: int, share: float) -> Color:
    if turn == 0 and max(color) >= 100:
        return color
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in color))
    hue = (hue + share * ((turn * _GOLDEN + 0.5) % 1 - 0.5)) % 1
    lack = 0.45 * (1 - share)  # of hues, which lightness makes up for
    darker, paler = ((1, 1), (1 - lack, 1), (1, 1 - lack))[turn % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, max(saturation, 0.6) * paler, max(value, 0.75) * darker)
    return round(red * 255), round(green * 255), round(blue * 255)


def beside(ids: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """Pairs (M, 2) of the ids 1..count that meet or nearly meet in an (H, W) map, as 0..count - 1; 0 is no object."""
    step = -(-max(ids.shape) // 640)
    small = ids[::step, ::step].astype(np.int64)
    found = []
    for reach in (1, 3, 6):
        for one, other in (
            (small[:, reach:], small[:, :-reach]),
            (small[reach:], small[:-reach]),
            (small[reach:, reach:], small[:-reach, :-reach]),
            (small[reach:, :-reach], small[:-reach, reach:]),
        ):
            meet = (one != other) & (one > 0) & (other > 0)
            found.append(np.unique(one[meet] * (count + 1) + other[meet]))
    codes = np.unique(np.concatenate(found))
    return np.stack([codes // (count + 1), codes % (count + 1)], 1) - 1


def rgb(color: npt.NDArray[np.uint8]) -> Color:
    """A colour out of an array."""
    red, green, blue = color.tolist()
    return red, green, blue


def ink(color: Color) -> Color:
    """Black or white, whichever has more contrast to a colour (WCAG 2): at least 4.5 to 1."""
    parts = (part / 255 for part in color)
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    bright = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if bright > 0.179 else (255, 255, 255)
