"""Counting against np.bincount, and what it takes."""

import tracemalloc

import numpy as np
import pytest

from kirie.counting import AT_ONCE, occurrences

SHAPES = [(), (0,), (5,), (0, 3), (3, 0), (40, 30), (40, 30, 3), (3, AT_ONCE + 5), (AT_ONCE + 5,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_it_counts_as_numpy_does(shape, dtype):
    numbers = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    counts = occurrences(numbers, 250)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, np.bincount(numbers.ravel(), minlength=250))
    turned = np.atleast_1d(numbers.T)[::2]
    np.testing.assert_array_equal(occurrences(turned, 250), np.bincount(turned.ravel(), minlength=250))


@pytest.mark.parametrize("shape", [(3000, 3000, 4), (1, 3000 * 3000, 4), (3000 * 3000, 1, 4)])
def test_many_numbers_take_no_more_than_few(shape):
    planes = np.full(shape, 7, np.uint16)
    tracemalloc.start()
    try:
        counts = occurrences(planes[..., :3], 65536)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts[7] == counts.sum() == 3 * 3000 * 3000
    assert peak < 20e6  # np.bincount: 8 bytes for each, 216 MB


@pytest.mark.parametrize("wrong, words", [(-1, "negative"), (250, "from 0 to 249, got 250")])
def test_numbers_out_of_range(wrong, words):
    with pytest.raises(ValueError, match=words):
        occurrences(np.array([3, wrong]), 250)
