"""Time of the chapter's augmentation beside albumentations 2.0.8: 360 x 480 picture with its mask, one core.

Both sides do: 90° turn, flips, shift-scale-rotate (0.1, 0.2, 45°), elastic, grid distortion (5 steps, 0.3), brightness
and contrast (0.2, 0.2). Elastic displacements have the same standard deviation (5 pixels) and smoothness (20 pixels).
What differs: albumentations turns the oblong picture by 90° and so changes its size, where kirie turns it by 180°;
albumentations fills what lies outside with black, where kirie mirrors it.

Run as `python -m benchmarks.augment`.
"""

from __future__ import annotations

import math
import os
import statistics
import time
import warnings
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from kirie.classes import Classes
from kirie.data.augment import PRESETS, AugmentSettings, augment
from kirie.results import SemanticMap

SIZE = (360, 480)
ROUNDS = 15
CALLS = 40  # per round and side, so that a round's mean does not hang on what was drawn


def albumentations_like(settings: AugmentSettings) -> Any:
    """The albumentations pipeline that does what the settings say."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for news
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import albumentations as A

        # Its alpha multiplies white noise of deviation 1 after a Gaussian filter, which divides it by 2 sqrt(pi) sigma.
        alpha = settings.elastic_strength * 2 * math.sqrt(math.pi) * settings.elastic_smoothness
        return A.Compose(
            [
                A.RandomRotate90(p=settings.rotate90),
                A.HorizontalFlip(p=settings.flip_horizontal),
                A.VerticalFlip(p=settings.flip_vertical),
                A.ShiftScaleRotate(
                    shift_limit=settings.shift,
                    scale_limit=settings.scale,
                    rotate_limit=settings.rotate,
                    p=settings.shift_scale_rotate,
                ),
                A.ElasticTransform(alpha=alpha, sigma=settings.elastic_smoothness, p=settings.elastic),
                A.GridDistortion(
                    num_steps=settings.grid_steps, distort_limit=settings.grid_limit, p=settings.grid_distortion
                ),
                A.RandomBrightnessContrast(settings.brightness, settings.contrast, p=settings.brightness_contrast),
            ],
            seed=0,
        )


def compare(settings: AugmentSettings) -> tuple[float, float, float]:
    """Milliseconds per picture of kirie and of albumentations, and the median ratio of interleaved rounds."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    image: Any = cv2.GaussianBlur(noise, (0, 0), 3)
    truth = SemanticMap(image[..., 0] // 13, Classes.numbered(20))
    pipeline = albumentations_like(settings)
    ours, theirs = [], []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        for _ in range(CALLS):
            augment(image, truth, settings, rng)
        middle = time.perf_counter()
        for _ in range(CALLS):
            pipeline(image=image, mask=truth.labels)
        ours.append((middle - start) / CALLS * 1e3)
        theirs.append((time.perf_counter() - middle) / CALLS * 1e3)
    ratios = [b / a for a, b in zip(ours[1:], theirs[1:], strict=True)]  # the first round warms up
    return statistics.median(ours[1:]), statistics.median(theirs[1:]), statistics.median(ratios)


def main() -> list[str]:
    """The rows of a markdown table, printed as well."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        chapter = PRESETS["medical"]
        steps = ("rotate90", "flip_horizontal", "flip_vertical", "shift_scale_rotate", "elastic", "grid_distortion")
        always: dict[str, Any] = dict.fromkeys((*steps, "brightness_contrast"), 1.0)
        rows = ["| augmentation, 360 x 480 and mask | kirie | albumentations 2.0.8 | ratio |", "|---|---|---|---|"]
        for name, settings in (
            ("every step", replace(chapter, **always)),
            ("with the chapter's probabilities", chapter),
        ):
            ours, theirs, ratio = compare(settings)
            rows.append(f"| {name} | {ours:.2f} ms | {theirs:.2f} ms | {ratio:.1f} x |")
    finally:
        cv2.setNumThreads(threads)
    print("\n".join(rows))
    return rows


if __name__ == "__main__":
    main()
