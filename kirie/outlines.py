"""Outlines along the edges of pixels, which COCO's way of filling polygons turns back into the very same mask.

COCO's filling flips inside and outside at every edge it crosses, as its API's `frPyObjects` does. So a bridge that is
walked there and back changes nothing, and one ring can carry the holes and the parts of an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

Ring = npt.NDArray[np.int64]


def outlines(top: int, left: int, bits: npt.NDArray[np.bool_]) -> list[Ring]:
    """One ring (P, 2) of x, y pixel edges for each part of a mask, the holes of the part joined to it by bridges.

    Parts touch at corners at most. Filled as COCO fills polygons, the rings give the mask back exactly.

    Args:
        top: the row of the picture in which `bits` begin.
        left: the column likewise.
        bits: (h, w) a part of the picture that holds the mask.
    """
    return [joined(rings) for rings in polygons(top, left, bits)]


def polygons(top: int, left: int, bits: npt.NDArray[np.bool_]) -> list[list[Ring]]:
    """The rings of each part of a mask, its outer one first and then those of its holes; arguments as of `outlines`."""
    parts: dict[int, list[Ring]] = {}
    pieces, _ = ndimage.label(bits)
    for ring in _rings(bits):
        column, row = ring[0]  # the highest corner, of these the leftmost: its pixel is inside, or a hole's first
        inside = row < bits.shape[0] and column < bits.shape[1] and bits[row, column]
        piece = pieces[row, column] if inside else pieces[row - 1, column]
        parts.setdefault(int(piece), []).append(ring)
    offset = np.array([left, top])
    return [[ring + offset for ring in rings] for rings in parts.values()]


def outline(top: int, left: int, bits: npt.NDArray[np.bool_]) -> Ring | None:
    """The same as a single ring, its parts joined by bridges too; None for an empty mask."""
    rings = outlines(top, left, bits)
    return joined(rings) if rings else None


def joined(rings: Sequence[Ring]) -> Ring:
    """One ring of several, each joined to the one before by a bridge between their nearest corners.

    A bridge is walked there and back, so it has no width.
    """
    bridges = [_nearest(ring, other) for ring, other in pairwise(rings)]
    entries = [0, *(entry for _, entry in bridges)]
    exits = [*(leave for leave, _ in bridges), entries[-1]]
    there, back = [], []
    for ring, entry, leave in zip(rings, entries, exits, strict=True):
        round_ = np.concatenate([ring[entry:], ring[: entry + 1]])
        place = (leave - entry) % len(ring)
        there.append(round_[: place + 1])
        back.append(round_[place:])
    walked = np.concatenate([*there, *back[::-1]])
    repeated = (walked == np.roll(walked, -1, 0)).all(1)  # where the walk turns, and its first corner at its end
    whole: Ring = walked[~repeated]
    return whole


def _nearest(ring: Ring, other: Ring) -> tuple[int, int]:
    """The numbers of the two corners that lie nearest to each other, one of each ring."""
    found: Any = cKDTree(ring).query(other)
    entry = int(np.argmin(found[0]))
    return int(found[1][entry]), entry


def _rings(bits: npt.NDArray[np.bool_]) -> list[Ring]:
    """The corners (P, 2) x, y of each outline of an (h, w) mask, outer or round a hole, from its highest leftmost on.

    Pixels that touch at a corner alone belong to different rings.
    """
    around = np.pad(bits, 1)
    # The four pixels round each of the (h + 1) x (w + 1) corners of pixels.
    upper_left, upper_right = around[:-1, :-1], around[:-1, 1:]
    lower_left, lower_right = around[1:, :-1], around[1:, 1:]
    number = upper_left.astype(np.int8) + upper_right + lower_left + lower_right
    odd = number % 2 == 1
    touching = (number == 2) & (upper_left == lower_right)
    # Where two pixels touch, two outlines turn: one by its left edge and one by its right edge.
    places = np.argwhere(odd | touching).repeat(1 + touching[odd | touching], 0)
    row, column = places.T
    twice = touching[row, column]
    second = np.zeros(len(places), np.int64)
    second[1:] = (places[1:] == places[:-1]).all(1)
    # The left edge goes with the upper one where the upper left pixel is inside, else with the lower one.
    lower = np.where(twice & ~upper_left[row, column], 1 - second, second)
    across = _partners(np.lexsort((second, column, row)))
    down = _partners(np.lexsort((lower, row, column)))
    return [places[chain][:, ::-1].astype(np.int64) for chain in _chains(across.tolist(), down.tolist())]


def _partners(order: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """With each corner the other end of its edge, when the ends of edges stand side by side in `order`."""
    partner = np.empty(len(order), np.int64)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    return partner


def _chains(across: list[int], down: list[int]) -> list[list[int]]:
    """The corners of each ring in turn, walked along an edge across and an edge down by turns."""
    seen = bytearray(len(across))
    chains = []
    for start in range(len(across)):
        if seen[start]:
            continue
        chain, at = [], start
        while not seen[at]:
            seen[at] = 1
            following = across[at]
            seen[following] = 1
            chain += [at, following]
            at = down[following]
        chains.append(chain)
    return chains
