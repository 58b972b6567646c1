"""A data set of one's own: a function that returns the samples of a split, and a training on them.

On the command line the function is named in place of a folder: `kirie train examples.own_dataset:shapes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np

import kirie
from kirie.data.dataset import Sample
from kirie.data.listed import SampleList
from kirie.training.fit import Run

CLASSES = kirie.Classes(("disc", "square"))
COUNTS = {"train": 24, "val": 6}


def shapes(split: str) -> Sequence[partial[Sample]]:
    """The samples of a split, each a function that makes or reads one when it is its turn."""
    return [partial(shape, split, number) for number in range(COUNTS[split])]


def shape(split: str, number: int) -> Sample:
    """A noisy picture with three bright shapes, and each of them as an object; yours would read files here."""
    rng = np.random.default_rng([split == "train", number])
    image = rng.integers(30, 70, (96, 128, 3), np.uint8)
    masks, labels = np.zeros((3, 96, 128), np.uint8), rng.integers(0, 2, 3)
    for mask, label, left in zip(masks, labels, (4, 46, 88), strict=True):
        x, y, side = left + int(rng.integers(0, 8)), int(rng.integers(4, 60)), int(rng.integers(20, 30))
        if label == 0:
            cv2.circle(mask, (x + side // 2, y + side // 2), side // 2, 1, -1)
        else:
            cv2.rectangle(mask, (x, y), (x + side, y + side), 1, -1)
        image[mask == 1] += rng.integers(90, 150, 3, np.uint8)
    truth = kirie.Instances.from_masks(kirie.Masks.from_dense(masks == 1), labels, CLASSES)
    return Sample(image, truth, f"{split} {number}")


def main(out: str = "runs/shapes", epochs: int = 20) -> Run:
    """Trains a U-Net on the pixels' classes, for which the objects become a map with background."""
    dataset = SampleList(shapes, task="semantic")
    changes = [f"train.epochs={epochs}", "train.patch=[96, 128]", "model.arguments.width=16"]
    run = kirie.train(dataset, model="unet", changes=changes, out=out)
    report = kirie.evaluate(kirie.load(run.folder), dataset.only("val"))
    print(f"{', '.join(dataset.classes.names)}: mIoU {report.score:.3f}")
    return run


if __name__ == "__main__":
    main()
