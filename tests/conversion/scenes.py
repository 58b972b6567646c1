"""Small data sets to convert, whose truth is known as arrays."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from kirie.data import open_dataset

SIZE = (30, 41)
NAMES = ("person", "car", "bicycle")  # of Cityscapes, VOC and COCO alike
NUMBERS = (4, 9, 2)


def disc(y, x, radius):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def box(top, left, height, width):
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


# By split and picture: class, mask, whether it is a crowd. No two objects overlap.
SCENES = {
    "train": {
        "köln 一.jpg": [
            ("person", disc(8, 9, 7) & ~disc(7, 8, 2) & ~disc(11, 11, 1), False),  # holes
            ("car", box(0, 20, 4, 5) | box(12, 30, 3, 3) | box(29, 40, 1, 1), False),  # parts, one in the corner
            ("person", box(20, 2, 5, 6), False),
            ("person", box(20, 8, 5, 6), False),  # touches its neighbour
            ("bicycle", box(25, 20, 1, 1), False),  # a single pixel
            ("bicycle", box(5, 39, 25, 1) & (np.mgrid[: SIZE[0], : SIZE[1]][0] % 2 == 0), False),  # specks
        ],
        "a.b.png": [],
    },
    "val": {
        "0001.png": [
            ("car", box(0, 0, 10, 41), True),
            ("car", box(12, 5, 6, 6), False),
            ("person", disc(20, 30, 6) & (np.random.default_rng(0).random(SIZE) < 0.6), False),  # noise
        ]
    },
    "test": {"0001.jpg": [("bicycle", box(0, 0, *SIZE), False)]},
}


def save_picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)).save(path)


def coco_source(root, scenes=SCENES):
    """The scenes as a COCO data set, by pycocotools; the categories have the numbers `NUMBERS`."""
    seed = 0
    for split, pictures in scenes.items():
        images, annotations = [], []
        for name, objects in pictures.items():
            seed += 1
            save_picture(root / "images" / split / name, seed)
            images.append({"id": seed, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            for label, mask, crowd in objects:
                rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": seed,
                        "category_id": NUMBERS[NAMES.index(label)],
                        "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()},
                        "area": int(mask.sum()),
                        "bbox": coco_mask.toBbox(rle).tolist(),
                        "iscrowd": int(crowd),
                    }
                )
        categories = [{"id": number, "name": name} for number, name in zip(NUMBERS, NAMES, strict=True)]
        facts = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(facts))
    return root


def known(split, name, *, crowds=True, scenes=SCENES):
    """What a picture's objects are, comparable: class, crowd, mask."""
    objects = scenes[split][name]
    return [(label, crowd, mask.tobytes()) for label, mask, crowd in objects if crowds or not crowd]


def read(dataset, index):
    """The same of a sample of a data set."""
    truth = dataset[index].truth
    crowd = truth.crowd
    names = [truth.classes.names[label] for label in truth.labels]
    return [(n, bool(c), mask.tobytes()) for n, c, mask in zip(names, crowd, truth.masks, strict=True)]


def pictures_of(path, split, task="instance"):
    """The bytes of each picture of a split, with what a data set says of it."""
    dataset = open_dataset(path, split, task=task)
    return {
        Path(dataset.file_facts(index)["image"]).read_bytes(): read(dataset, index) for index in range(len(dataset))
    }


def map_source(root, splits=("train", "val"), classes=("sky", "köpfe", "tree"), ids=(7, 26, 3), void=200):
    """Index masks with numbers of their own, and the maps as they are in files by split and name."""
    maps = {}
    for number, split in enumerate(splits):
        for index in range(3):
            name = f"{split or 'p'}{index}"
            save_picture(root / "images" / split / f"{name}.jpg", 10 * number + index)
            numbers = np.random.default_rng(10 * number + index).choice(np.array([*ids, void], np.uint8), SIZE)
            place = root / "masks" / split / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers).save(place)
            maps[split, name] = numbers
    table = {"classes": classes, "ids": ids, "colors": [[9, 8, 7], [200, 0, 1], [1, 255, 2]], "ignore_index": void}
    (root / "classes.json").write_text(json.dumps(table))
    return maps
