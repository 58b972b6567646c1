"""Pictures that look alike in two splits: copies saved anew, resized, brightened, mirrored or turned.

Of each picture a thumbnail is kept. The 64 bits of its perceptual hash (which of its lowest cosine terms are above the
median, as Zauner 2010 describes it) choose the pairs that are compared; the thumbnails themselves decide.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kirie.data.fault import Fault

SIDE = 32  # of a thumbnail
BANDS, BITS = 8, 8  # hashes that differ in fewer bits than there are bands have a band in common
MOST_DIFFERENT = 7  # bits
CORRELATED = 0.98  # of the thumbnails
FLAT = 2.0  # grey levels of standard deviation, below which pictures are too plain to be told apart

Thumbnail = npt.NDArray[np.uint8]  # (SIDE, SIDE)
WAYS = ("", "mirrored", "upside down", "turned by 180 degrees", *(["turned by 90 degrees"] * 4))


@dataclass
class Lookalikes:
    """The pictures seen so far: their files, splits and thumbnails."""

    files: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    thumbnails: list[Thumbnail] = field(default_factory=list)

    def add(self, file: str, split: str, image: npt.NDArray[np.uint8]) -> None:
        """Notes a picture (H, W, C); none of no split, or that is nearly of one grey."""
        if not split:
            return
        grey: Any = image[..., 0] if image.shape[2] != 3 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        small = np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
        if small.std() >= FLAT:
            self.files.append(file)
            self.splits.append(split)
            self.thumbnails.append(small)

    def faults(self) -> list[Fault]:
        """A note for each picture that looks like one of another split, with the one that it is most like.

        Files of equal bytes are told elsewhere.
        """
        mend = "Look at both; where they are one, take it out of one split: a score on training pictures misleads."
        found = []
        best: dict[int, tuple[int, int, float]] = {}
        for first, second, way, share in self.pairs():
            if filecmp.cmp(self.files[first], self.files[second], shallow=False):
                continue
            if second not in best or share > best[second][2]:
                best[second] = (first, way, share)
        for second, (first, way, share) in sorted(best.items()):
            files = (self.files[first], self.files[second])
            how = f"{WAYS[way]}, " if way else ""
            what = (
                f"{files[0]} ({self.splits[first]}) and {files[1]} ({self.splits[second]}) look alike: "
                f"{how}correlation {share:.3f}."
            )
            found.append(Fault("note", "pictures in two splits look alike", what, files, mend))
        return found

    def pairs(self) -> Iterator[tuple[int, int, int, float]]:
        """Numbers of two pictures of different splits, the smaller first, which of `WAYS`, and the correlation."""
        if len(set(self.splits)) < 2:
            return
        hashes = np.array([_hash(thumbnail) for thumbnail in self.thumbnails], np.uint64)
        bands = [_band(hashes, band) for band in range(BANDS)]
        orders = [np.argsort(band, kind="stable") for band in bands]
        ordered = [band[order] for band, order in zip(bands, orders, strict=True)]
        splits = np.array(self.splits)
        for index, thumbnail in enumerate(self.thumbnails):
            best: dict[int, tuple[float, int]] = {}
            for way, turned in enumerate(_ways(thumbnail)):
                code = np.array([_hash(turned)], np.uint64)
                near = [
                    order[slice(*np.searchsorted(values, [wanted, wanted + 1]))]
                    for order, values, wanted in zip(
                        orders, ordered, (int(_band(code, b)[0]) for b in range(BANDS)), strict=True
                    )
                ]
                rows = np.unique(np.concatenate(near))
                rows = rows[(rows > index) & (splits[rows] != splits[index])]
                rows = rows[np.bitwise_count(hashes[rows] ^ code[0]) <= MOST_DIFFERENT]
                for row in rows.tolist():
                    share = _correlation(turned, self.thumbnails[row])
                    if share >= CORRELATED and share > best.get(row, (0.0, 0))[0]:
                        best[row] = (share, way)
            for row, (share, way) in sorted(best.items()):
                yield index, row, way, share


def _hash(thumbnail: Thumbnail) -> int:
    terms: Any = cv2.dct(thumbnail.astype(np.float32))[:8, :8]
    low = terms.ravel()
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean, which brightness changes
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _band(hashes: npt.NDArray[np.uint64], band: int) -> npt.NDArray[np.int64]:
    return ((hashes >> np.uint64(BITS * band)) & np.uint64(2**BITS - 1)).astype(np.int64)


def _ways(thumbnail: Thumbnail) -> Iterator[Thumbnail]:
    """The thumbnail in all eight ways to lay down a square, in the order of `WAYS`."""
    for square in (thumbnail, thumbnail.T):
        yield from (np.ascontiguousarray(way) for way in (square, square[:, ::-1], square[::-1], square[::-1, ::-1]))


def _correlation(first: Thumbnail, second: Thumbnail) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
