"""Segment ids for a COCO panoptic data set whose PNGs hold category ids alone.

Such PNGs (a grey value per pixel, the category's id) tell the segments of one class apart only by what the JSON says of
them: box and area. Where the connected regions of a class fit into these boxes in one way, with the very areas that the
JSON states, the segment ids are found again, exactly; pictures where they are not are left out.

    python -m benchmarks.panoptic_truth SOURCE OUT

SOURCE is a folder with `annotations/panoptic_SPLIT.json`, `annotations/panoptic_SPLIT/*.png` and `images/SPLIT`. OUT
becomes a COCO panoptic data set of the same layout, its pictures linked, of those pictures alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from kirie.coco_words import id_colors

Ids = np.ndarray[Any, np.dtype[np.int32]]


def recovered(categories: np.ndarray[Any, Any], segments: list[dict[str, Any]]) -> Ids | None:
    """The segment ids (H, W) of a map of category ids (H, W) whose segments are listed; None where several fit."""
    ids = np.zeros(categories.shape, np.int32)
    for category in np.setdiff1d(np.unique(categories), [0]):
        own = [segment for segment in segments if segment["category_id"] == category]
        if not _share(categories == category, own, ids):
            return None
    found = dict(zip(*(each.tolist() for each in np.unique(ids[ids > 0], return_counts=True)), strict=True))
    return ids if found == {segment["id"]: segment["area"] for segment in segments} else None


def _share(region: np.ndarray[Any, Any], segments: list[dict[str, Any]], ids: Ids) -> bool:
    """Gives the connected parts of a region to the segments whose box and area leave no choice, in place."""
    parts, count = ndimage.label(region, np.ones((3, 3)))
    places = ndimage.find_objects(parts)
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:].tolist()
    left = {segment["id"]: segment["area"] for segment in segments}
    boxes = {segment["id"]: segment["bbox"] for segment in segments}
    waiting = set(range(count))
    while waiting:
        sure = {}
        for part in waiting:
            rows, columns = places[part]
            fitting = [
                key
                for key, (x, y, width, height) in boxes.items()
                if x <= columns.start and columns.stop <= x + width and y <= rows.start and rows.stop <= y + height
                and left[key] >= areas[part]
            ]  # fmt: skip
            if len(fitting) == 1:
                sure[part] = fitting[0]
                left[fitting[0]] -= areas[part]
                ids[parts == part + 1] = fitting[0]
        if not sure:
            return False
        waiting -= sure.keys()
    return not any(left.values())


def recover(source: Path, out: Path) -> dict[str, int]:
    """Writes the data set and says how many pictures each split has."""
    counts = {}
    for path in sorted((source / "annotations").glob("panoptic_*.json")):
        split = path.stem.removeprefix("panoptic_")
        facts = json.loads(path.read_text(encoding="utf-8"))
        kept = []
        for entry in facts["annotations"]:
            categories = np.array(Image.open(source / "annotations" / path.stem / entry["file_name"]))
            ids = recovered(categories, entry["segments_info"])
            if ids is not None:
                target = out / "annotations" / path.stem / entry["file_name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(id_colors(ids)).save(target)
                kept.append(entry)
        numbers = {entry["image_id"] for entry in kept}
        images = [image for image in facts["images"] if image["id"] in numbers]
        text = json.dumps({**facts, "images": images, "annotations": kept})
        (out / "annotations" / path.name).write_text(text, encoding="utf-8")
        (out / "images").mkdir(exist_ok=True)
        (out / "images" / split).symlink_to((source / "images" / split).resolve())
        counts[split] = len(kept)
    return counts


def main() -> None:
    """Prints how many pictures there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    print(recover(given.source, given.out))


if __name__ == "__main__":
    main()
