"""Whether each instance model can learn at all: 8 photographs by heart, from random weights.

A model whose targets, losses or decoding are wrong somewhere does not reach a mask AP50 of 0.9 on the very pictures it
was trained on; one without a fault does, whatever it is worth elsewhere.

    python -m benchmarks.overfit COCO [--models yolact,solov2] [--epochs 40] [--out overfit]

COCO is a folder with `annotations/instances_train2017.json` and `images/train2017`. Of its pictures those are taken, in
the order of their ids, that have 480 x 640 pixels and 1 to 10 objects, no crowd and no object under 2048 pixels, until
there are 8: they are trained on whole, at the short side of 256. History, model and report stay in `--out`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from kirie.models.file import load
from kirie.prediction.evaluate import evaluate
from kirie.training.fit import train

PICTURES, SIZE, SMALLEST, MOST = 8, (480, 640), 2048, 10
SHORT_SIDE, PATCH = 256, (256, 341)
MODELS: dict[str, dict[str, Any]] = {
    "mask_rcnn": {"channels": 128, "norm": True, "box_width": 512, "mask_width": 128},
    "yolact": {"channels": 128},
    "solov2": {"channels": 128, "width": 128, "depth": 2, "mask_channels": 128},
}
PANOPTIC = {"panoptic_fpn": {**MODELS["mask_rcnn"], "width": 64, "stuff_area": 256}}  # see `overfit_panoptic.py`


def choose(source: Path, folder: Path) -> Path:
    """A data set of the chosen pictures alone, with only the classes that occur in them."""
    facts = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in facts["annotations"]:
        objects[annotation["image_id"]].append(annotation)

    def fits(image: dict[str, Any]) -> bool:
        own, size = objects[image["id"]], (image["height"], image["width"])
        sound = all(not a["iscrowd"] and a["area"] >= SMALLEST for a in own)
        return size == SIZE and 1 <= len(own) <= MOST and sound

    images = [image for image in sorted(facts["images"], key=lambda image: image["id"]) if fits(image)][:PICTURES]
    annotations = [annotation for image in images for annotation in objects[image["id"]]]
    used = {annotation["category_id"] for annotation in annotations}
    categories = [category for category in facts["categories"] if category["id"] in used]
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "train").symlink_to((source / "images" / "train2017").resolve())
    chosen = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances_train.json").write_text(json.dumps(chosen))
    return folder


def learn(name: str, data: Path, out: Path, epochs: int, patch: tuple[int, int] = PATCH) -> dict[str, Any]:
    """Trains one model on the pictures and measures it on the same ones."""
    arguments = {"encoder": "resnet18", **(MODELS | PANOPTIC)[name]}
    changes = [
        "data.train=train",
        "data.val=train",
        f"data.short_side={SHORT_SIDE}",
        f"model.arguments={json.dumps(arguments)}",
        "augment.preset=none",
        f"train.patch={list(patch)}",
        "train.batch_size=4",
        "train.draws=8",
        f"train.epochs={epochs}",
        "train.learning_rate=1e-3",
        f"train.validate_every={max(epochs // 4, 1)}",
        "train.samples_every=0",
    ]
    start = time.perf_counter()
    run = train(data, model=name, changes=changes, out=out)
    minutes = (time.perf_counter() - start) / 60
    report: Any = evaluate(load(run.folder), data, split="train", out=out)
    return {"model": name, "minutes": minutes, **report.history_row()}


def main() -> None:
    """Prints one row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("overfit"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = choose(given.coco, Path(folder) / "eight")
        for name in given.models.split(","):
            row = learn(name, data, given.out / name, given.epochs)
            print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
