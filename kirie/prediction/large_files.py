"""The maps of pictures larger than memory as files: tiled TIFF, and an overlay that is small enough to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.coco_words import bboxes, id_colors
from kirie.counting import occurrences
from kirie.drawing import draw
from kirie.drawing.picture import as_picture
from kirie.errors import KirieError
from kirie.files import write_picture
from kirie.prediction.large_result import BAND, LargeResult
from kirie.prediction.map_files import write_tiff
from kirie.prediction.predicted import LargePredicted
from kirie.results import SemanticMap

OVERLAY = 4096  # pixels of the longer side of an overlay at the most


def label_classes(result: LargeResult) -> Classes:
    """The classes of a result's label map: with background where it is one of objects."""
    return result.classes.with_background() if result.task == "instance" else result.classes


def file_type(classes: Classes) -> Any:
    """The numbers that a label file of these classes needs, void among them."""
    void = int(classes.to_file_ids(np.array([[classes.void]]))[0, 0])
    return np.uint8 if max(*classes.ids, void) <= 255 else np.uint16


def save_labels(out: Path, one: LargePredicted) -> tuple[Path, ...]:
    """Writes `NAME.tif`: the class ids that the data set's own files use, with the class colours where 8 bits do."""
    classes = label_classes(one.result)
    kind = file_type(classes)
    colors = dict(zip(classes.ids, classes.colors, strict=True)) if kind is np.uint8 else None
    path = out / f"{one.name}.tif"
    write_tiff(path, (classes.to_file_ids(rows) for rows in one.result.labels()), one.size, kind, one.picture, colors)
    return (path,)


def save_ids(out: Path, one: LargePredicted) -> tuple[Path, ...]:
    """Writes `NAME_ids.tif`: 32 bits, 1 for the first object, 2 for the second..., 0 for none; the surest on top."""
    path = out / f"{one.name}_ids.tif"
    write_tiff(path, one.result.ids(), one.size, np.uint32, one.picture)
    return (path,)


def save_overlay(out: Path, one: LargePredicted) -> tuple[Path, ...]:
    """Writes `NAME_overlay.jpg`: the classes over the picture, every so many pixels one, with the names of classes."""
    step = -(-max(one.size) // OVERLAY)
    classes = label_classes(one.result)
    labels, pixels = [], []
    for top, rows in zip(range(0, one.size[0], BAND), one.result.labels(), strict=True):
        chosen = slice(-top % step, None, step)
        if len(rows[chosen]):
            labels.append(rows[chosen, ::step].copy())  # a view would keep all rows
            pixels.append(_shown(one, top, rows.shape[0])[chosen, ::step].copy())
    path = out / f"{one.name}_overlay.jpg"
    small = SemanticMap(np.ascontiguousarray(np.concatenate(labels)), classes)
    write_picture(path, draw(small, as_picture(np.concatenate(pixels)), legend=True), quality=92)
    return (path,)


def _shown(one: LargePredicted, top: int, height: int) -> npt.NDArray[np.uint8]:
    """Rows of the picture, grey where they cannot be read."""
    try:
        return one.picture.read(top, top + height, 0, one.size[1])
    except KirieError:
        return np.full((height, one.size[1], one.picture.channels), 128, np.uint8)


def save_segments(path: Path, one: LargePredicted, categories: Sequence[int]) -> list[dict[str, Any]]:
    """Writes a panoptic map's segment ids as colours, as COCO has them, in a TIFF, and lists the segments.

    Things have the numbers of the objects, stuff those after them. The box of a thing is that of its whole mask.

    Args:
        path: of the TIFF.
        one: what is written.
        categories: what COCO files call the classes.
    """
    result, index = one.result, one.result.index
    count = len(index.labels)
    numbers = {label: count + place for place, label in enumerate(result.stuff, 1)}
    table = np.zeros(result.classes.void + 1, np.int32)
    table[list(numbers)] = list(numbers.values())
    areas = np.zeros(count + 1, np.int64)

    def colors() -> Iterator[npt.NDArray[np.uint8]]:
        for top, ids in zip(range(0, one.size[0], BAND), result.ids(), strict=True):
            areas[:] += occurrences(ids, count + 1)
            yield id_colors(np.where(ids > 0, ids, table[result.map(top, top + len(ids))]).astype(np.int32))

    write_tiff(path, colors(), (*one.size, 3), np.uint8, one.picture)
    rows: list[dict[str, Any]] = []
    for place in (np.flatnonzero(areas[1:])).tolist():  # a thing that others cover is none
        (box,) = bboxes(index.boxes[place : place + 1])
        facts = {"category_id": categories[index.labels[place]], "bbox": box, "area": int(areas[place + 1])}
        rows.append({"id": place + 1, "iscrowd": 0, **facts, "score": round(float(index.scores[place]), 6)})
    for label, number in numbers.items():
        area, edges = result.stuff[label]
        (box,) = bboxes(np.array([edges], np.float32))
        rows.append({"id": number, "iscrowd": 0, "category_id": categories[label], "bbox": box, "area": area})
    return rows
