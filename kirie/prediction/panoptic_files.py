"""Panoptic results in files: COCO panoptic, and what their things are written as, alike those of instance models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from kirie.coco_words import id_colors, segments_info
from kirie.files import write_picture
from kirie.prediction.large_files import save_segments
from kirie.prediction.picture_files import Opened, Run, Write
from kirie.prediction.predicted import LargePredicted, Predicted
from kirie.results import PanopticMap

NAME = "panoptic_results"  # of the JSON file and of the folder beside it, as COCO's own pairs are called


@contextmanager
def coco_panoptic_results(run: Run) -> Iterator[Write]:
    """Writes segments: `panoptic_results.json` lists them, `panoptic_results/NAME.png` has their ids as colours.

    The format is that of COCO's panoptic results, which panopticapi's evaluation reads; things have a `score` beside.
    Of a large picture the ids are in a TIFF.
    """
    rows = zip(run.categories, run.classes.names, run.classes.things, run.classes.colors, strict=True)
    categories = [{"id": i, "name": n, "isthing": int(thing), "color": color} for i, n, thing, color in rows]
    head = f'{{"categories": {json.dumps(categories)},\n"annotations": [\n'
    with run.growing.open(f"{NAME}.json", head, "\n]}\n", ",\n") as annotations:

        def write(one: Predicted) -> tuple[Path]:
            path, segments = _segments(run, one)
            annotations(json.dumps({"image_id": one.number, "file_name": path.name, "segments_info": segments}))
            return (path,)

        yield write


def _segments(run: Run, one: Predicted) -> tuple[Path, list[dict[str, Any]]]:
    """Writes the picture of a map's segments; its file, and the segments as COCO lists them."""
    if isinstance(one, LargePredicted):
        path = run.out / NAME / f"{one.name}.tif"
        return path, save_segments(path, one, run.categories)
    result: PanopticMap = one.result
    path = run.out / NAME / f"{one.name}.png"
    write_picture(path, Image.fromarray(id_colors(result.ids)))
    segments = segments_info(result, run.categories)
    for row, segment in zip(segments, result.segments, strict=True):
        if segment.is_thing:
            row["score"] = round(segment.score, 6)
    return path, segments


def of_things(opened: Opened) -> Opened:
    """What writes the objects of instance models, for the things of panoptic ones."""

    @contextmanager
    def things_alone(run: Run) -> Iterator[Write]:
        places = [label for label, thing in enumerate(run.classes.things) if thing]
        own = replace(
            run, classes=run.classes.subset(places), categories=tuple(run.categories[place] for place in places)
        )
        with opened(own) as write:
            yield lambda one: write(one.things())

    return things_alone
