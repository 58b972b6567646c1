"""Panoptic truth: a map of segments made from numbers, and counted anew after a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.masks import count_ids
from kirie.results import PanopticMap, Segment


def segment_map(ids: npt.NDArray[Any], facts: Mapping[int, tuple[int, bool]], classes: Classes) -> PanopticMap:
    """The truth in a map of numbers.

    Args:
        ids: (H, W) whole numbers of segments.
        facts: the label of each number, and whether it is a crowd. Numbers without facts are void, facts without
            pixels are left out.
        classes: the classes, which say what is a thing.
    """
    found, areas = count_ids(ids)
    counts = dict(zip(found.tolist(), areas.tolist(), strict=True))
    segments = tuple(
        Segment(number, label, classes.things[label], 1.0, counts[number], crowd)
        for number, (label, crowd) in facts.items()
        if number in counts
    )
    strange = [number for number in counts if number and number not in facts]
    known = np.where(np.isin(ids, strange), 0, ids) if strange else ids
    return PanopticMap(known.astype(np.int32, copy=False), segments, classes)


def recounted(ids: npt.NDArray[np.int32], truth: PanopticMap) -> PanopticMap:
    """The map with other pixels (H, W) and those segments of `truth` that have some, their areas counted anew."""
    found, areas = count_ids(ids)
    counts = dict(zip(found.tolist(), areas.tolist(), strict=True))
    segments = tuple(replace(s, area=counts[s.id]) for s in truth.segments if s.id in counts)
    return PanopticMap(ids, segments, truth.classes)
