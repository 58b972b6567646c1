"""Run lengths as COCO's tools have them."""

import numpy as np
import pytest
from pycocotools import mask as reference

from kirie.run_lengths import runs_of, union


def packed(mask):
    return reference.encode(np.asfortranarray(mask, np.uint8))["counts"]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (13, 17)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_union_is_that_of_pycocotools(size, share, count):
    rng = np.random.default_rng(count)
    masks = [packed(rng.random(size) < share) for _ in range(count)]
    merged = reference.merge([{"size": list(size), "counts": mask} for mask in masks])
    assert union(masks, size) == merged["counts"]


def test_the_union_takes_time_by_the_runs_and_not_by_the_picture():
    size = (60_000, 60_000)
    lengths = [[at, 10, 3_600_000_000 - at - 10] for at in range(100, 200, 5)]
    masks = [reference.frPyObjects({"size": list(size), "counts": each}, *size)["counts"] for each in lengths]
    one = union(masks, size)
    starts, ends = runs_of(one)
    assert starts.tolist() == [100] and ends.tolist() == [205]
