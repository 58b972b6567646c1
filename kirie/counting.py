"""How often numbers occur, counted with little memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

AT_ONCE = 2**20  # numbers, of which `np.bincount` makes copies of 8 bytes each


def occurrences(numbers: npt.NDArray[np.integer], length: int) -> npt.NDArray[np.int64]:
    """How often each of 0..length - 1 occurs, as `np.bincount` tells it, in 8 MB for however many numbers.

    Args:
        numbers: of any shape with at least one dimension, from 0 to below `length`.
        length: how many are told apart.

    Raises:
        ValueError: when a number is out of that range.
    """
    counts = np.zeros(length, np.int64)
    step = max(1, AT_ONCE * len(numbers) // max(1, numbers.size))
    for begin in range(0, len(numbers), step):
        counts += np.bincount(numbers[begin : begin + step].ravel(), minlength=length)
    return counts
