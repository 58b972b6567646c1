"""Truths with objects and results that are wrong in every way a model's are, for the tests of instance metrics."""

import json
from dataclasses import replace

import numpy as np

from kirie.classes import Classes
from kirie.masks import Crop, Masks
from kirie.results import Instances


def corners(rows):
    """The boxes (N, 4) `xyxy` of annotations."""
    sides = (annotation["bbox"] for annotation in rows)
    return np.array([(x, y, x + width, y + height) for x, y, width, height in sides], np.float32).reshape(-1, 4)


def coco_truths(path):
    """The truths of a COCO file in the order of its image ids, and the file's values."""
    values = json.loads(path.read_text())
    ids = [category["id"] for category in values["categories"]]
    classes = Classes(tuple(c["name"] for c in values["categories"]), ids=tuple(ids))
    truths = []
    for image in sorted(values["images"], key=lambda each: each["id"]):
        size = (image["height"], image["width"])
        rows = [a for a in values["annotations"] if a["image_id"] == image["id"]]
        items = []
        for row in rows:
            outline = row["segmentation"]
            made = (
                Masks.from_rles([outline], size) if isinstance(outline, dict) else Masks.from_polygons([outline], size)
            )
            items += made.items
        truths.append(
            Instances(
                corners(rows),
                np.array([ids.index(a["category_id"]) for a in rows], np.int64),
                np.ones(len(rows), np.float32),
                Masks(size, tuple(items)),
                size,
                classes,
                np.array([a["iscrowd"] for a in rows], bool),
                np.array([a["area"] for a in rows], np.float64),
            )
        )
    return truths, values


def blob_truth(rng, count, classes, size=(96, 128), crowd=0.0):
    """Ellipses of many sizes, some covering others, the first ones as crowds with a probability."""
    crops = []
    for _ in range(count):
        height, width = rng.integers(3, 40, 2)
        top, left = rng.integers(0, size[0] - height), rng.integers(0, size[1] - width)
        y, x = np.mgrid[:height, :width]
        inside = ((y - height / 2 + 0.5) / (height / 2)) ** 2 + ((x - width / 2 + 0.5) / (width / 2)) ** 2 <= 1
        crops.append(Crop(int(top), int(left), inside))
    labels = rng.integers(0, len(classes), count)
    return Instances.from_masks(Masks.from_crops(crops, size), labels, classes, crowd=rng.random(count) < crowd)


def found_in(truth, rng, *, ties=True):
    """A result: objects moved, cut, missed, doubled, of the wrong class or of nothing, and many equal scores."""
    crops, labels, scores = [], [], []
    height, width = truth.size
    for index, crop in enumerate(truth.masks.crops()):
        if not crop.bits.size or rng.random() < 0.15:
            continue
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            down, across = (rng.normal(0, 0.06, 2) * crop.bits.shape).round().astype(int)
            bits = crop.bits.copy()
            bits[: rng.integers(0, 1 + len(bits) // 6)] = False
            top = int(np.clip(crop.top + down, 0, height - bits.shape[0]))
            left = int(np.clip(crop.left + across, 0, width - bits.shape[1]))
            crops.append(Crop(top, left, bits))
            labels.append(truth.labels[index] if rng.random() < 0.9 else rng.integers(0, len(truth.classes)))
            scores.append(rng.random())
    for _ in range(rng.integers(0, 6)):
        h, w = rng.integers(1, height // 2), rng.integers(1, width // 2)
        crops.append(Crop(int(rng.integers(0, height - h)), int(rng.integers(0, width - w)), np.ones((h, w), bool)))
        labels.append(rng.choice(truth.labels) if len(truth) else 0)
        scores.append(rng.random())
    values = np.array(scores, np.float32)
    masks = Masks.from_crops(crops, truth.size)
    result = Instances.from_masks(masks, np.array(labels, np.int64), truth.classes, values.round(1) if ties else values)
    moved = result.boxes + rng.normal(0, 1.5, result.boxes.shape).astype(np.float32)  # boxes of their own
    moved = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:] - 1), moved[:, 2:]], 1)
    return replace(result, boxes=moved)
