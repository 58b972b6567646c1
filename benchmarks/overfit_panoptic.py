"""Whether Panoptic FPN can learn at all: 8 photographs by heart, from random weights; see `overfit.py`.

    python -m benchmarks.overfit_panoptic DATA [--epochs 40] [--out overfit]

DATA is a COCO panoptic folder (`annotations/panoptic_train2017.json`, its PNGs, `images/train2017`), or one whose PNGs
hold category ids, of which `panoptic_truth.py` finds the segments where they are certain. Of its pictures those are
taken, in the order of their ids, that are 640 pixels wide and 425 to 480 high, with things and stuff, no crowd, at most
12 segments and none under 1024 pixels, until there are 8: they are trained on whole, at the short side of 256.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.overfit import PICTURES, learn
from benchmarks.panoptic_truth import recover

SMALLEST, MOST = 1024, 12
LOWEST, HIGHEST, WIDTH = 425, 480, 640
PATCH = (256, 386)  # the widest of them at the short side of 256


def choose(source: Path, folder: Path) -> Path:
    """A data set of the chosen pictures alone, with only the classes that occur in them."""
    facts = json.loads((source / "annotations" / "panoptic_train2017.json").read_text(encoding="utf-8"))
    things = {category["id"] for category in facts["categories"] if category["isthing"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in facts["images"]}

    def fits(entry: dict[str, Any]) -> bool:
        segments = entry["segments_info"]
        kinds = {segment["category_id"] in things for segment in segments}
        sound = all(not segment["iscrowd"] and segment["area"] >= SMALLEST for segment in segments)
        height, width = sizes[entry["image_id"]]
        shape = width == WIDTH and LOWEST <= height <= HIGHEST
        return shape and kinds == {True, False} and sound and len(segments) <= MOST

    chosen = [entry for entry in sorted(facts["annotations"], key=lambda entry: entry["image_id"]) if fits(entry)]
    if len(chosen) < PICTURES:
        raise SystemExit(f"{source} has {len(chosen)} pictures that fit, of {PICTURES}.")
    chosen = chosen[:PICTURES]
    numbers = {entry["image_id"] for entry in chosen}
    used = {segment["category_id"] for entry in chosen for segment in entry["segments_info"]}
    kept = {
        "images": [image for image in facts["images"] if image["id"] in numbers],
        "annotations": chosen,
        "categories": [category for category in facts["categories"] if category["id"] in used],
    }
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "images" / "train2017").symlink_to((source / "images" / "train2017").resolve())
    masks = folder / "annotations" / "panoptic_train2017"
    masks.symlink_to((source / "annotations" / "panoptic_train2017").resolve())
    masks.with_suffix(".json").write_text(json.dumps(kept), encoding="utf-8")
    return folder


def has_segment_ids(source: Path) -> bool:
    """Whether the PNGs are in colour, as segment ids are written."""
    first = next((source / "annotations" / "panoptic_train2017").glob("*.png"))
    return np.array(Image.open(first)).ndim == 3


def main() -> None:
    """Prints one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("overfit"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = given.data
        if not has_segment_ids(source):
            source = Path(folder) / "recovered"
            recover(given.data, source)
        data = choose(source, Path(folder) / "eight")
        row = learn("panoptic_fpn", data, given.out / "panoptic_fpn", given.epochs, PATCH)
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
