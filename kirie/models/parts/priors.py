"""Prior boxes of one-shot detectors: where they lie, how boxes are coded by them, which truth each of them learns.

Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016 (arXiv 1512.02325), as YOLACT uses it. All boxes here are
relative: 0 is the picture's left or upper edge and 1 its right or lower one. Priors are (P, 4) centres and sides (cx,
cy, w, h), other boxes (N, 4) `xyxy`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BACKGROUND, NEUTRAL = -1, -2  # what a prior learns that has no truth: that there is nothing, or nothing at all
_VARIANCES = (0.1, 0.2)  # of centres and sides: what is learned is divided by them
_LARGEST = 10.0  # exponent of a side; beyond any picture, and finite
_NEGATIVES = 3  # background priors learned per positive one
_CHOICES = 16  # priors that a truth may fall back on where others need its best ones
_AT_ONCE = 64  # truths compared with all priors at once, as there may be thousands of them
_PAIRS = 2**23  # of boxes that are compared at once


def grid_priors(cells: Sequence[int], cell: Sequence[float], sides: Tensor) -> Tensor:
    """The priors (h * w * A, 4) of one feature map, row by row, those of one place side by side.

    Args:
        cells: (h, w) of the map.
        cell: height and width of one cell; a prior's centre is its cell's.
        sides: (A, 2), width and height of each of the priors of a place.
    """
    down, right = (
        (torch.arange(count, dtype=torch.float32, device=sides.device) + 0.5) * side
        for count, side in zip(cells, cell, strict=True)
    )
    centres = torch.stack([right.expand(len(down), -1), down[:, None].expand(-1, len(right))], -1)  # (h, w, 2)
    shape = (*centres.shape[:2], len(sides), 2)
    return torch.cat([centres[:, :, None].expand(shape), sides.expand(shape)], -1).flatten(0, 2)


def corners(priors: Tensor) -> Tensor:
    """Boxes (P, 4) `xyxy` from centres and sides."""
    half = priors[:, 2:] / 2
    return torch.cat([priors[:, :2] - half, priors[:, :2] + half], 1)


def coded(boxes: Tensor, priors: Tensor) -> Tensor:
    """What is learned (N, 4) of boxes (N, 4) with area by priors (N, 4): how their centres and sides differ."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    moved = (centres - priors[:, :2]) / (_VARIANCES[0] * priors[:, 2:])
    return torch.cat([moved, (sides / priors[:, 2:]).log() / _VARIANCES[1]], 1)


def decoded(codes: Tensor, priors: Tensor) -> Tensor:
    """The boxes (N, 4) `xyxy` that codes (N, 4) mean by priors (N, 4)."""
    centres = priors[:, :2] + codes[:, :2] * _VARIANCES[0] * priors[:, 2:]
    sides = priors[:, 2:] * (codes[:, 2:] * _VARIANCES[1]).clamp(max=_LARGEST).exp()
    first = centres - sides / 2
    return torch.cat([first, first + sides], 1)


def overlaps(a: Tensor, b: Tensor, *, of_second: bool = False) -> Tensor:
    """IoU (..., N, M) of boxes (..., N, 4) with boxes (..., M, 4), 0 where both are empty.

    With `of_second` the share of each second box that the first one covers.
    """
    width, height = (
        (
            torch.minimum(a[..., :, None, end], b[..., None, :, end])
            - torch.maximum(a[..., :, None, at], b[..., None, :, at])
        )
        for at, end in ((0, 2), (1, 3))
    )
    inside = width.clamp(min=0) * height.clamp(min=0)
    own, other = ((boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (a, b))
    whole = other[..., None, :] if of_second else own[..., :, None] + other[..., None, :] - inside
    return inside / whole.clamp(min=torch.finfo(inside.dtype).tiny)


def matched(
    priors: Tensor, boxes: Tensor, crowds: Tensor, *, positive: float = 0.5, negative: float = 0.4, crowded: float = 0.7
) -> Tensor:
    """The row of `boxes` that each prior learns, (P,) int64, or `BACKGROUND`, or `NEUTRAL`.

    A prior learns the truth that it overlaps most, from an IoU of `positive` on, and background below `negative`. The
    best prior of each truth learns it whatever their IoU is; where truths share it, the one with the higher IoU has it
    and the other has its next best.

    Args:
        priors: (P, 4).
        boxes: (N, 4), each with area.
        crowds: (M, 4); priors that lie in one of them by more than the share `crowded` are not background.
        positive: IoU.
        negative: IoU.
        crowded: share of the prior.
    """
    places = corners(priors)
    best = priors.new_zeros(len(priors))
    rows = torch.zeros(len(priors), dtype=torch.int64, device=priors.device)
    choices: list[tuple[float, int, int]] = []  # IoU, truth and prior
    for start in range(0, len(boxes), _AT_ONCE):
        table = overlaps(boxes[start : start + _AT_ONCE], places)  # (up to _AT_ONCE, P)
        most, which = table.max(0)
        rows = torch.where(most > best, which + start, rows)
        best = torch.maximum(most, best)
        ranked, nearest = table.topk(min(_CHOICES, len(priors)), 1)
        for row, (shares, near) in enumerate(zip(ranked.tolist(), nearest.tolist(), strict=True), start):
            choices += [(share, row, prior) for share, prior in zip(shares, near, strict=True) if share > 0]
    state = torch.where(best >= positive, rows, torch.where(best >= negative, NEUTRAL, BACKGROUND))
    for start in range(0, len(crowds), _AT_ONCE):
        within = overlaps(crowds[start : start + _AT_ONCE], places, of_second=True).amax(0) > crowded
        state = torch.where(within & (state == BACKGROUND), NEUTRAL, state)
    own = _first_choices(choices)
    if own:
        state[torch.tensor(list(own.values()), device=state.device)] = torch.tensor(list(own), device=state.device)
    return state


def hardest(logits: Tensor, positive: Tensor, background: Tensor) -> Tensor:
    """The background priors (B, P) that are taken most for something: three per positive one of their picture.

    A picture without objects gives three as well, so that it teaches what is nothing.

    Args:
        logits: (B, P, 1 + K), background first.
        positive: (B, P) bool.
        background: (B, P) bool.
    """
    doubt = (logits.logsumexp(2) - logits[..., 0]).detach().masked_fill(~background, -torch.inf)
    ranks = doubt.argsort(1, descending=True).argsort(1)
    return background & (ranks < _NEGATIVES * positive.sum(1, keepdim=True).clamp(min=1))


def fast_nms(boxes: Tensor, scores: Tensor, *, threshold: float, candidates: int, most: int) -> tuple[Tensor, ...]:
    """What is left of boxes when those go that overlap a better one of their class, even one that goes itself.

    Bolya et al., "YOLACT", ICCV 2019, section 4: all classes at once. Fixed ranks, no branches, and lengths that depend
    on values only at the end, so that it can be traced.

    Args:
        boxes: (N, 4).
        scores: (N, K), at least 0.
        threshold: the IoU above which a box goes.
        candidates: how many boxes of each class take part, the best.
        most: how many are left at the most, all classes together.

    Returns:
        Rows of `boxes` (M,), classes (M,) and scores (M,), the highest score first.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if not (tracing or torch.compiler.is_compiling()):
        candidates = max(min(candidates, len(boxes)), 1)  # more there are not
    nothing = scores.new_full((scores.shape[1], candidates), -1.0)  # so that there are always enough to take
    top, rows = torch.cat([scores.T, nothing], 1).topk(candidates)  # (K, candidates), descending
    near = torch.cat([boxes, boxes.new_zeros(candidates, 4)])[rows]  # (K, candidates, 4)
    step = max(_PAIRS // (near.shape[0] * candidates), 1)
    better = torch.cat([_highest(near, start, start + step) for start in range(0, candidates, step)], 1)
    alive = torch.where(better <= threshold, top, -1.0).flatten()
    left, order = alive.topk(min(most, alive.numel()))
    order = order[left >= 0]
    return rows.flatten()[order], order // candidates, left[left >= 0]


def _highest(near: Tensor, start: int, stop: int) -> Tensor:
    """The highest IoU (K, stop - start) of some of the boxes (K, C, 4) with one before them."""
    some = near[:, start:stop]
    return overlaps(near[:, :stop], some).triu(1 - start).amax(1)


def _first_choices(choices: list[tuple[float, int, int]]) -> dict[int, int]:
    """A prior for each truth, by (IoU, truth, prior), the highest IoU first and no prior twice."""
    own: dict[int, int] = {}
    taken: set[int] = set()
    for _, row, prior in sorted(choices, key=lambda choice: -choice[0]):
        if row not in own and prior not in taken:
            own[row] = prior
            taken.add(prior)
    return own
