"""Parts of YOLO's segmentation files that data sets and results have alike: the lines of objects, and `data.yaml`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import yaml

from kirie.classes import Classes
from kirie.outlines import outline
from kirie.results import Instances


def object_lines(objects: Instances) -> list[str]:
    """A line `class x1 y1 x2 y2...` for each object that has a pixel, in shares of the picture's width and height.

    A line holds one ring along the edges of pixels; holes and further parts are joined to it by bridges without width.
    Filled as COCO fills polygons it gives the mask back exactly.
    """
    sides = np.array(objects.size[::-1])
    lines = []
    for label, crop in zip(objects.labels.tolist(), objects.masks.crops(), strict=True):
        ring = outline(*crop)
        if ring is not None:
            lines.append(" ".join([str(label), *(f"{share:.7g}" for share in (ring / sides).ravel().tolist())]) + "\n")
    return lines


def data_yaml(classes: Classes, folders: Mapping[str, str] | None = None) -> str:
    """The text of `data.yaml`: the folders of the splits, and the names of the classes by number."""
    facts = {**(folders or {}), "names": dict(enumerate(classes.names))}
    return yaml.safe_dump(facts, allow_unicode=True, sort_keys=False)
