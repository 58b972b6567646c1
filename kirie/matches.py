"""Which result belongs to which truth: objects of one picture matched one to one, for metrics and for drawings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from kirie.results import Instances

Overlaps = npt.NDArray[np.float64]


class Matches(NamedTuple):
    """The matches of one picture's N results with its M truths.

    Attributes:
        results: (P,) int64, the results that are matched, ascending,
        truths: (P,) int64, the truth of each.
        false: (N,) bool, the results that are wrong: matched with nothing, and not inside a crowd.
        missed: (M,) bool, the truths that are single objects and matched with nothing.
    """

    results: npt.NDArray[np.int64]
    truths: npt.NDArray[np.int64]
    false: npt.NDArray[np.bool_]
    missed: npt.NDArray[np.bool_]


def overlaps(result: Instances, truth: Instances, *, within_class: bool) -> Overlaps:
    """The IoU (N, M) of every mask of a result with every mask of the truth of the same picture.

    With a crowd it is the share of the result's mask that lies in it, as COCO has it. Between masks of different
    classes it is 0 where matches are wanted `within_class`.
    """
    if not len(result) or not len(truth):
        return np.zeros((len(result), len(truth)))
    found = coco_mask.iou(result.masks.rles(), truth.masks.rles(), truth.crowd.astype(int).tolist())
    table = np.nan_to_num(np.asarray(found, np.float64))  # two empty masks share nothing
    return np.where(result.labels[:, None] == truth.labels, table, 0.0) if within_class else table


def matched(table: Overlaps, crowd: npt.NDArray[np.bool_], threshold: float) -> Matches:
    """The one-to-one matches of most pairs with an IoU at or above a threshold.

    Among assignments with as many pairs it is that with the largest sum of IoUs over all that it assigns, pairs below
    the threshold included, which is how StarDist chooses.

    Args:
        table: (N, M) as `overlaps` gives it.
        crowd: (M,) bool, which truths are crowds: none is to be found, and a result without a match is not wrong where
            its share inside one reaches the threshold.
        threshold: in (0, 1].
    """
    single = np.flatnonzero(~crowd)
    ious = table[:, single]
    near = ious >= threshold
    if near.sum(0).max(initial=0) <= 1 and near.sum(1).max(initial=0) <= 1:  # there is nothing to choose
        rows, columns = np.nonzero(near)
    else:
        rows, columns = linear_sum_assignment(near + ious / (2 * min(ious.shape)), maximize=True)
        rows, columns = rows[near[rows, columns]], columns[near[rows, columns]]
    false = table[:, crowd].max(1, initial=0) < threshold
    false[rows] = False
    missed = ~crowd
    missed[single[columns]] = False
    return Matches(rows, single[columns], false, missed)
