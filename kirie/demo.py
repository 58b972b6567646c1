"""The demo data set in folders, for all three tasks; `demo_pictures.py` makes its pictures."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from faster_coco_eval.core import mask as rle_coder
from numpy.typing import NDArray
from PIL import Image

from kirie.demo_pictures import CLASSES, COIN, COLORS, DemoSource, demo_picture, demo_source
from kirie.errors import KirieError
from kirie.progress import tracked

SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}
_VERSION = 1


def make_demo(folder: str | Path, *, pictures: int = 120, size: tuple[int, int] = (240, 320), seed: int = 0) -> Path:
    """The folder of a demo data set for all three tasks, made now unless it is already there.

    Each picture depends on `seed`, its split and its number only, not on how many others are made. Files, where
    `split` is train (60 %), val or test (20 % each): `images/split/0001.jpg`; `masks/split/0001.png`, class ids in a
    palette; `ids/split/0001.png`, 16-bit instance ids; `instances_split.json`, COCO with run lengths;
    `panoptic/split/0001.png` and `panoptic_split.json`, COCO panoptic; `classes.json`; `demo.json`, the settings.

    Args:
        folder: Where; it must not exist, be empty, or hold the demo of these same settings.
        pictures: How many in all three splits together, at least 5.
        size: (H, W) of each, 64 to 2048 pixels.
        seed: 0 or more; another seed makes other pictures of the same photographs.

    Raises:
        KirieError: A setting is out of its range, the folder holds something else, or scikit-image is missing.
    """
    folder = Path(folder).expanduser().resolve()
    settings = _check_settings(pictures, size, seed)
    if _already_made(folder, settings):
        return folder
    sources = {split: demo_source(split) for split in SPLITS}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        fresh = Path(beside) / "demo"
        fresh.mkdir()
        for number, (split, count) in enumerate(_split_sizes(pictures).items()):
            seeds = ((seed, number, i) for i in range(count))
            _write_split(fresh, split, sources[split], tracked(seeds, f"demo, {split}", count), size)
        things = [CLASSES[COIN]]
        _write_json(fresh / "classes.json", {"classes": CLASSES, "colors": COLORS, "things": things}, indent=1)
        _write_json(fresh / "demo.json", settings, indent=1)
        if folder.exists():  # empty: it may be the working directory of a shell, so it stays
            for child in sorted(fresh.iterdir(), key=lambda path: path.name == "demo.json"):
                child.rename(folder / child.name)
        else:
            fresh.rename(folder)
    return folder


def _check_settings(pictures: int, size: tuple[int, int], seed: int) -> dict[str, Any]:
    if pictures < 5:
        raise KirieError(f"The demo needs at least 5 pictures, to fill train, val and test; got {pictures}.")
    if len(size) != 2 or not all(64 <= side <= 2048 for side in size):
        raise KirieError(f"The size of the demo's pictures is (height, width), each 64 to 2048 pixels; got {size}.")
    if seed < 0:
        raise KirieError(f"The seed of the demo is a whole number from 0 up; got {seed}.")
    return {"kirie_demo": _VERSION, "pictures": int(pictures), "size": [int(side) for side in size], "seed": int(seed)}


def _already_made(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this very demo; KirieError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    advice = "Name another folder, or remove this one."
    try:
        found = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KirieError(f"{folder} exists, is not empty and is not a demo data set. {advice}") from error
    if found != settings:
        raise KirieError(f"{folder} holds a demo of other settings: {found}; asked for were {settings}. {advice}")
    return True


def _split_sizes(pictures: int) -> dict[str, int]:
    counts = {split: round(share * pictures) for split, share in SPLITS.items()}
    counts["train"] += pictures - sum(counts.values())
    return counts


def _write_split(
    root: Path, split: str, source: DemoSource, seeds: Iterable[tuple[int, int, int]], size: tuple[int, int]
) -> None:
    """Writes all files of one split; its first picture shows every ground, so that no split lacks a class."""
    for kind in ("images", "masks", "ids", "panoptic"):
        (root / kind / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for number, seed in enumerate(seeds, start=1):
        rng = np.random.default_rng(seed)
        image, labels, ids = demo_picture(rng, source, size, grounds=3 if number == 1 else None)
        name = f"{number:04d}"
        Image.fromarray(image).save(root / "images" / split / f"{name}.jpg", quality=92)
        mask = Image.fromarray(labels)
        mask.putpalette([value for color in COLORS for value in color])
        mask.save(root / "masks" / split / f"{name}.png")
        Image.fromarray(ids).save(root / "ids" / split / f"{name}.png")
        code, segments = _panoptic(labels, ids)
        Image.fromarray(code).save(root / "panoptic" / split / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        panoptic.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
        for segment in _instances(ids):
            instances.append({"id": len(instances) + 1, "image_id": number, **segment})
    coin = [{"id": 1, "name": CLASSES[COIN], "supercategory": CLASSES[COIN]}]
    every = [
        {"id": k + 1, "name": name, "isthing": int(k == COIN), "color": COLORS[k]} for k, name in enumerate(CLASSES)
    ]
    _write_json(root / f"instances_{split}.json", {"images": images, "annotations": instances, "categories": coin})
    _write_json(root / f"panoptic_{split}.json", {"images": images, "annotations": panoptic, "categories": every})


def _instances(ids: NDArray[np.uint16]) -> list[dict[str, Any]]:
    """COCO annotations, without ids of their own, of the visible part of every coin."""
    found = []
    for k in range(1, int(ids.max()) + 1):
        rle = rle_coder.encode(np.asfortranarray(ids == k, dtype=np.uint8))
        found.append(
            {
                "category_id": 1,
                "segmentation": {"size": list(ids.shape), "counts": rle["counts"].decode("ascii")},
                "area": int(rle_coder.area(rle)),
                "bbox": [float(side) for side in rle_coder.toBbox(rle)],
                "iscrowd": 0,
            }
        )
    return found


def _panoptic(labels: NDArray[np.uint8], ids: NDArray[np.uint16]) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """The RGB code (H, W, 3) of segment ids and COCO's segments_info: coins keep their ids, grounds follow."""
    coins = int(ids.max())
    segment_ids = np.where(ids > 0, ids, coins + 1 + labels).astype(np.int64)
    code = np.stack([segment_ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    segments = []
    for k in np.unique(segment_ids):
        region = segment_ids == k
        left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
        category = COIN + 1 if k <= coins else int(k) - coins
        box, area = [left, top, width, height], int(region.sum())
        segments.append({"id": int(k), "category_id": category, "area": area, "bbox": box, "iscrowd": 0})
    return code, segments


def _write_json(path: Path, value: dict[str, Any], indent: int | None = None) -> None:
    path.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")
