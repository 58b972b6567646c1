"""The objects of a run in the formats of other tools: COCO results, YOLO polygons, pictures cut out."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kirie.coco_words import bboxes, run_lengths
from kirie.drawing.picture import as_picture
from kirie.errors import KirieError
from kirie.files import whole_file, write_picture
from kirie.prediction.picture_files import Run, Write
from kirie.prediction.predicted import Predicted
from kirie.reading.strict_yaml import read_yaml
from kirie.results import Instances
from kirie.yolo_words import data_yaml, object_lines


@contextmanager
def coco_results(run: Run) -> Iterator[Write]:
    """Writes `results.json` in COCO's results format, and `images.json`, which names the picture of each `image_id`.

    `images.json` is a COCO file without annotations: `COCO("images.json").loadRes("results.json")` reads the two.
    """
    categories = [{"id": i, "name": name} for i, name in zip(run.categories, run.classes.names, strict=True)]
    end = f'\n], "annotations": [], "categories": {json.dumps(categories)}}}\n'
    with (
        run.growing.open("images.json", '{"images": [\n', end, ",\n") as images,
        run.growing.open("results.json", "[\n", "\n]\n", ",\n") as results,
    ):

        def write(one: Predicted) -> tuple[()]:
            height, width = one.size
            images(json.dumps({"id": one.number, "file_name": one.title, "height": height, "width": width}))
            for part in one.parts():
                found = [json.dumps(entry) for entry in _coco_entries(part, one.number, run.categories)]
                if found:
                    results(",\n".join(found))
            return ()

        yield write


def _coco_entries(result: Instances, number: int, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The objects of a picture as entries of a COCO results file, `number` being its `image_id`."""
    rows = zip(
        result.labels.tolist(),
        bboxes(result.boxes.round(3)),
        result.scores.astype(np.float64).round(6).tolist(),
        run_lengths(result.masks),
        strict=True,
    )
    for label, box, score, mask in rows:
        yield {"image_id": number, "category_id": categories[label], "bbox": box, "score": score, "segmentation": mask}


@contextmanager
def yolo_labels(run: Run) -> Iterator[Write]:
    """Writes `NAME.txt`, a line per object as `object_lines` has it, and in the end `data.yaml` with the classes."""

    def write(one: Predicted) -> tuple[Path]:
        path = run.out / f"{one.name}.txt"
        with whole_file(path) as stand_in, stand_in.open("w", encoding="utf-8") as file:
            for part in one.parts():
                file.writelines(object_lines(part))
        return (path,)

    with run.growing.ended_by(run.out / "data.yaml", data_yaml(run.classes)):
        yield write


def check_data_yaml(out: Path) -> None:
    """Raises a KirieError where the `data.yaml` of `out` is more than names of classes, as a data set's own is."""
    path = out / "data.yaml"
    if not path.exists():
        return
    facts = read_yaml(path, "list of classes")
    if not isinstance(facts, dict) or set(facts) != {"names"}:
        raise KirieError(f"The results would replace {path}, which describes a data set; choose another folder.")


def save_cutouts(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `cutouts/NAME_NUMBER_CLASS.png` for each object: its part of the picture, transparent round the mask."""
    written = []
    numbers = itertools.count(1)
    for part in one.parts():
        for label, crop in zip(part.labels.tolist(), part.masks.crops(), strict=True):
            number = next(numbers)
            if not crop.bits.size:
                continue
            cut = np.full((*crop.bits.shape, 4), 255, np.uint8)
            cut[..., :3] = as_picture(one.pixels(crop))
            cut[~crop.bits] = 0
            word = re.sub(r"\W+", "-", part.classes.names[label])[:60]
            path = out / "cutouts" / f"{one.name}_{number:04d}_{word}.png"
            write_picture(path, Image.fromarray(cut))
            written.append(path)
    return tuple(written)
