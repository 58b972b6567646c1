"""The objects of a run in the formats of other tools: COCO results, YOLO polygons, pictures cut out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from kirie import boxes as box_maths
from kirie.classes import Classes
from kirie.drawing.picture import as_picture
from kirie.files import growing_file, write_picture, write_text
from kirie.outlines import outline
from kirie.prediction.writers import Predicted, Run, Write
from kirie.results import Instances


@contextmanager
def coco_results(run: Run) -> Iterator[Write]:
    """Writes `results.json` in COCO's results format, and `images.json`, which names the picture of each `image_id`.

    `images.json` is a COCO file without annotations: `COCO("images.json").loadRes("results.json")` reads the two.
    Categories have the ids of `category_ids`.
    """
    ids = category_ids(run.classes)
    categories = [{"id": i, "name": name} for i, name in zip(ids, run.classes.names, strict=True)]
    end = f'\n], "annotations": [], "categories": {json.dumps(categories)}}}\n'
    with (
        growing_file(run.out / "images.json", '{"images": [\n', end, ",\n") as images,
        growing_file(run.out / "results.json", "[\n", "\n]\n", ",\n") as results,
    ):

        def write(one: Predicted) -> tuple[()]:
            height, width = one.result.size
            images(json.dumps({"id": one.number, "file_name": one.title, "height": height, "width": width}))
            found = [json.dumps(entry) for entry in coco_entries(one.result, one.number)]
            if found:
                results(",\n".join(found))
            return ()

        yield write


def category_ids(classes: Classes) -> tuple[int, ...]:
    """What COCO files call the classes: their ids in files or, as COCO counts from 1, 1, 2, 3... where one is below."""
    return classes.ids if min(classes.ids) > 0 else tuple(range(1, len(classes) + 1))


def coco_entries(result: Instances, number: int) -> Iterator[dict[str, Any]]:
    """The objects of a picture as entries of a COCO results file, `number` being its `image_id`."""
    ids = category_ids(result.classes)
    rows = zip(
        result.labels.tolist(),
        box_maths.to_xywh(result.boxes).astype(np.float64).round(3).tolist(),
        result.scores.astype(np.float64).round(6).tolist(),
        result.masks.rles(),
        strict=True,
    )
    for label, box, score, rle in rows:
        mask = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        yield {"image_id": number, "category_id": ids[label], "bbox": box, "score": score, "segmentation": mask}


@contextmanager
def yolo_labels(run: Run) -> Iterator[Write]:
    """Writes `NAME.txt`, a line per object: its class, then its outline as shares of width and height; `data.yaml`.

    An outline runs along the edges of the mask's pixels. As a line holds one ring, holes and further parts are joined
    to it by bridges without width, which leaves a mask filled from it as it was. `data.yaml` names the classes.
    """
    names = dict(enumerate(run.classes.names))
    write_text(run.out / "data.yaml", yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False))

    def write(one: Predicted) -> tuple[Path]:
        result: Instances = one.result
        sides = np.array(result.size[::-1])
        lines = []
        for label, crop in zip(result.labels.tolist(), result.masks.crops(), strict=True):
            ring = outline(crop)
            if ring is not None:
                lines.append(" ".join([str(label), *(f"{share:.7g}" for share in (ring / sides).ravel().tolist())]))
        path = run.out / f"{one.name}.txt"
        write_text(path, "".join(f"{line}\n" for line in lines))
        return (path,)

    yield write


def save_cutouts(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `cutouts/NAME_NUMBER_CLASS.png` for each object: its part of the picture, transparent round the mask."""
    result: Instances = one.result
    picture = as_picture(one.picture)
    written = []
    for index, crop in enumerate(result.masks.crops()):
        if not crop.bits.size:
            continue
        height, width = crop.bits.shape
        cut = np.zeros((height, width, 4), np.uint8)
        cut[..., :3] = picture[crop.top : crop.top + height, crop.left : crop.left + width]
        cut[..., 3] = 255
        cut[~crop.bits] = 0
        word = re.sub(r"\W+", "-", result.classes.names[result.labels[index]])[:60]
        path = out / "cutouts" / f"{one.name}_{index + 1:04d}_{word}.png"
        write_picture(path, Image.fromarray(cut))
        written.append(path)
    return tuple(written)
