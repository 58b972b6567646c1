"""Removing small regions, beside the usual loop over regions; and taking regions apart, beside scikit-image.

The loop looks at the whole picture once per region. Ours numbers, measures and looks up once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from kirie.cleanup import RegionRules, apart, cleaned

SIZE, REGIONS, SMALLEST, REPEATS = 1024, 5000, 50, 5
Mask = Any


def spots(count: int, seed: int = 0) -> Mask:
    """A mask (SIZE, SIZE) of so many squares apart from one another, half of them smaller than SMALLEST pixels."""
    rng = np.random.default_rng(seed)
    step = int(SIZE / np.ceil(np.sqrt(count)))
    places = [(y, x) for y in range(0, SIZE - step + 1, step) for x in range(0, SIZE - step + 1, step)]
    mask = np.zeros((SIZE, SIZE), bool)
    for index in rng.permutation(len(places))[:count]:
        y, x = places[index]
        side = int(rng.integers(3, step - 1))
        mask[y : y + side, x : x + side] = True
    return mask


def loop(mask: Mask) -> Mask:
    """Small regions removed one at a time, each by comparing the whole picture with its number."""
    out = mask.astype(np.uint8)
    ids, count = ndimage.label(out)
    for number in range(1, count + 1):
        region = ids == number
        if region.sum() < SMALLEST:
            out[region] = 0
    return out.astype(bool)


def discs(seed: int = 0) -> Mask:
    """Many discs that overlap a little."""
    rng, mask = np.random.default_rng(seed), np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(900):
        cv2.circle(mask, tuple(int(v) for v in rng.integers(0, SIZE, 2)), int(rng.integers(6, 18)), 1, -1)
    return mask.astype(bool)


def by_scikit_image(mask: Mask) -> Mask:
    """The usual recipe: a watershed from the peaks of the distances."""
    depth = ndimage.distance_transform_edt(mask)
    peaks = peak_local_max(depth, min_distance=7, labels=ndimage.label(mask)[0])
    markers = np.zeros(mask.shape, int)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-depth, markers, mask=mask)


def seconds(call: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> list[dict[str, Any]]:
    """Prints and returns one row per work, of medians."""
    mask, blobs, rules = spots(REGIONS), discs(), RegionRules(smallest=SMALLEST)
    assert np.array_equal(loop(mask), cleaned(mask, rules))
    rows = []
    for work, ours, theirs, repeats in (
        (f"clean-up, {REGIONS} regions", lambda: cleaned(mask, rules), lambda: loop(mask), REPEATS),
        ("taking discs apart", lambda: apart(blobs, 0.85), lambda: by_scikit_image(blobs), REPEATS),
    ):
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
        mine, other = (float(np.median(column)) for column in zip(*pairs, strict=True))
        ratio = float(np.median([b / a for a, b in pairs]))
        rows.append({"work": work, "kirie": mine, "peer": other, "ratio": ratio})
        print(f"{work}, {SIZE} x {SIZE}: {1e3 * mine:.1f} ms, peer {1e3 * other:.1f} ms, {ratio:.0f} x")
    return rows


if __name__ == "__main__":
    main()
