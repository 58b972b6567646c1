"""How large tiles are where nothing is said, and which pictures are not taken apart: by the training and the memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from kirie.errors import KirieError
from kirie.models.contract import SegmentationModel
from kirie.models.memory import bytes_per_pixel, free_memory
from kirie.models.parts.region_objects import RegionObjects
from kirie.prediction.grid import check_tile

LEAST = 512  # pixels of a side; patches of a training are often smaller than what suits prediction
MOST_OVERLAP = 128  # pixels that tiles share where nothing is said, or a quarter of a tile where that is less
SMALL = 2**22  # pixels of a picture that any machine has the memory for
SMALLEST = 128  # below that a network sees too little around a pixel
SHARE = 0.5  # of the free memory that a picture may take


def parse_tile(text: str) -> int | str | None:
    """A tile as it is typed: "auto", "none" (None), or the pixels of a side.

    Raises:
        KirieError: when it is none of them.
    """
    word = text.strip().lower()
    if word in ("auto", "none"):
        return None if word == "none" else word
    if not word.isdecimal() or not 0 < int(word) < 2**20:
        raise KirieError(f"--tile is auto, none or the pixels of a side, such as 512; got {text!r:.60}.")
    return int(word)


class TileSize:
    """The size of tiles, as asked for or found out when a picture first needs it.

    By itself a tile has the side of the patches that the first model learned from, as often as it takes to come to 512,
    or of what the model resizes pictures to; less where half of the free memory does not suffice. Pictures are not
    taken apart while half of it suffices, or when the model resizes them.

    Args:
        models: that look at the tiles.
        side: pixels of a tile's side; None for what is found out.
        overlap: pixels that tiles share; None for a quarter of a tile, at most 128.

    Attributes:
        asked_overlap: the overlap as given.

    Raises:
        KirieError: when the side or the overlap is out of range.
    """

    def __init__(
        self, models: Sequence[SegmentationModel], side: int | None = None, overlap: int | None = None
    ) -> None:
        self._models = [model.semantic if isinstance(model, RegionObjects) else model for model in models]
        self._side, self.asked_overlap = side, overlap
        if overlap is not None and (type(overlap) is not int or overlap < 0):
            raise KirieError(f"Tiles share a whole number of pixels from 0 on, got {overlap!r:.60}.")
        if side is not None or overlap is not None:
            check_tile(self._usual if side is None else side, self.overlap if overlap is None else overlap)

    @classmethod
    def wished(
        cls, models: Sequence[SegmentationModel], tile: int | str | None, overlap: int | None
    ) -> TileSize | None:
        """What a person wants: "auto", pixels of a side, or None for no tiles.

        Raises:
            KirieError: when it is none of these or out of range, or an overlap is said without tiles.
        """
        if tile is None and overlap is None:
            return None
        if tile is None:
            raise KirieError(f"Tiles share {overlap} pixels, but there are to be none: choose a tile too.")
        if isinstance(tile, str) and tile != "auto":
            raise KirieError(f'A tile is "auto", None or the pixels of a side, got {tile!r:.60}.')
        return cls(models, None if isinstance(tile, str) else _plain(tile), _plain(overlap))

    @property
    def asked(self) -> bool:
        """Whether the side was asked for."""
        return self._side is not None

    @property
    def side(self) -> int:
        """Pixels of a tile's side."""
        return self.measured[0] if self._side is None else self._side

    @property
    def overlap(self) -> int:
        """Pixels that tiles share, at least."""
        return usual_overlap(self.side) if self.asked_overlap is None else self.asked_overlap

    def takes_apart(self, size: tuple[int, int]) -> bool:
        """Whether a picture (H, W) that is in memory is looked at in tiles."""
        height, width = size
        if self._side is not None:
            return max(height, width) > self._side
        return height * width > SMALL and height * width > self.measured[1] and max(height, width) > self.side

    @property
    def _fixed(self) -> int | None:
        """The side to which the first model resizes pictures, if it does."""
        side: int | None = getattr(self._models[0], "input_size", None) or self._models[0].inputs.short_side
        return side

    @property
    def _usual(self) -> int:
        """The side that is taken by itself where there is memory for it."""
        patch = self._models[0].inputs.patch
        if patch is None:
            return self._fixed or LEAST
        return max(patch) if self._fixed else max(patch) * -(-LEAST // max(patch))

    @cached_property
    def measured(self) -> tuple[int, int]:
        """The side that is taken by itself, and how many pixels a picture may have that is not taken apart."""
        side, least = self._usual, max(SMALLEST, 2 * (self.asked_overlap or 0))
        room = SHARE * free_memory(self._models[0].mean.device)
        need = max(bytes_per_pixel(model) for model in self._models)
        while side > least and side * side * need > room and not self._fixed:
            side = max(least, side // 2)
        return side, 2**62 if self._fixed else int(room / need)


def _plain(number: Any) -> Any:
    """A whole number of NumPy as one of Python; anything else as it is."""
    return int(number) if isinstance(number, np.integer) else number


def usual_overlap(side: int) -> int:
    """Pixels that tiles of a side share where nothing is said."""
    return min(MOST_OVERLAP, side // 4)
