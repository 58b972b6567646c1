"""The region proposal network: Ren et al., "Faster R-CNN", NIPS 2015 (arXiv 1506.01497), over all maps of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou, nms  # type: ignore[import-untyped]

from kirie.models.parts.anchors import clipped, coded, decoded, wider

NOTHING, NEUTRAL = -1, -2  # what a box learns that has no truth: that there is nothing, or nothing at all
_AT_ONCE = 32  # truths compared with all boxes at once, as there may be thousands of them
_CROWDED = 0.5  # the share of a box within a crowd from which on it does not learn that there is nothing


class ProposalHead(nn.Module):
    """Whether there is an object at each anchor, and what its box is; the same for all maps of a pyramid.

    Args:
        channels: C of the maps.
        anchors: A per place.
        convs: 3 x 3 convolutions with ReLU before the two 1 x 1 ones.
    """

    def __init__(self, channels: int, anchors: int, convs: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(convs))
        )
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.codes = nn.Conv2d(channels, 4 * anchors, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, A, h, w) and codes (B, 4 * A, h, w), those of an anchor side by side, for a map (B, C, h, w)."""
        x = self.convs(x)
        return self.objectness(x), self.codes(x)


def by_anchor(x: Tensor, values: int) -> Tensor:
    """Outputs (B, A * values, h, w) in the order of `grid_anchors`: (B, h * w * A, values), in float32."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values).float()


def select(
    logits: Sequence[Tensor],
    codes: Sequence[Tensor],
    anchors: Sequence[Tensor],
    size: Tensor,
    *,
    candidates: int,
    most: int,
    overlap: float = 0.7,
    least: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The proposals of one picture, as tensors alone: boxes (N, 4) and their logits (N,), the highest first.

    Args:
        logits: (P_i,) per map.
        codes: (P_i, 4) per map.
        anchors: (P_i, 4) per map.
        size: (2,), H and W of the picture without padding, to which boxes are cut.
        candidates: how many of each map take part, those with the highest logits.
        most: how many are left at the most, all maps together.
        overlap: IoU above which a box goes that overlaps a better one of its own map.
        least: boxes must be wider and higher than so many pixels.
    """
    boxes, scores = [], []
    for row, code, anchor in zip(logits, codes, anchors, strict=True):
        best, index = row.topk(min(candidates, row.shape[0]))
        found = clipped(decoded(code[index], anchor[index]), size)
        kept = wider(found, least)
        found, best = found[kept], best[kept]
        kept = nms(found, best, overlap)
        boxes.append(found[kept])
        scores.append(best[kept])
    merged = torch.cat(scores)
    order = merged.argsort(descending=True, stable=True)[:most]
    return torch.cat(boxes)[order], merged[order]


def matched(
    boxes: Tensor, truths: Tensor, crowds: Tensor, *, positive: float, negative: float, fall_back: bool = False
) -> Tensor:
    """The row of `truths` that each box learns, (P,) int64, or `NOTHING`, or `NEUTRAL`.

    A box learns the truth that it overlaps most, from an IoU of `positive` on, and nothing below `negative`.

    Args:
        boxes: (P, 4).
        truths: (N, 4), each with area.
        crowds: (M, 4); boxes of which one of them covers half are neutral rather than nothing.
        positive: IoU.
        negative: IoU.
        fall_back: whether those boxes that overlap a truth as much as none else does learn as well, at any IoU: the
            truth that they themselves overlap most.
    """
    best = boxes.new_zeros(len(boxes))
    rows = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    nearest = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for start in range(0, len(truths), _AT_ONCE):
        table = box_iou(truths[start : start + _AT_ONCE], boxes)  # (up to _AT_ONCE, P)
        most, which = table.max(0)
        rows = torch.where(most > best, which + start, rows)
        best = torch.maximum(most, best)
        if fall_back:
            nearest |= ((table == table.amax(1, keepdim=True)) & (table > 0)).any(0)
    state = torch.where(best >= positive, rows, torch.where(best >= negative, NEUTRAL, NOTHING))
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    for crowd in crowds:
        inside = (torch.minimum(boxes[:, 2:], crowd[2:]) - torch.maximum(boxes[:, :2], crowd[:2])).clamp(min=0)
        crowded = inside.prod(1) > _CROWDED * sides.prod(1)
        state = torch.where(crowded & (state == NOTHING), NEUTRAL, state)
    return torch.where(nearest, rows, state)


def sampled(state: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Up to `count` boxes at random: the indices of those with a truth, at most that `share`, and of those without."""
    positive, negative = (torch.where(chosen)[0] for chosen in (state >= 0, state == NOTHING))
    few = min(len(positive), int(count * share))
    rest = min(len(negative), count - few)
    return tuple(  # type: ignore[return-value]
        found[torch.randperm(len(found), device=found.device)[:most]]
        for found, most in ((positive, few), (negative, rest))
    )


def proposal_losses(
    logits: Tensor,
    codes: Tensor,
    anchors: Tensor,
    truths: Sequence[Tensor],
    crowds: Sequence[Tensor],
    *,
    count: int = 256,
    beta: float = 0.0,
    fixed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Losses of the objectness (cross entropy) and of the boxes (smooth L1), over a sample of each picture's anchors.

    Args:
        logits: (B, P).
        codes: (B, P, 4).
        anchors: (P, 4).
        truths: boxes (N, 4) per picture, each with area.
        crowds: boxes (M, 4) per picture.
        count: anchors that learn, of each picture; half of them at most have a truth.
        beta: of smooth L1; 0 for L1.
        fixed: whether both sums are divided by `count` for each picture, otherwise by the anchors that learn.
    """
    objects, boxes, learning = [], [], 0
    for row, code, own, crowd in zip(logits, codes, truths, crowds, strict=True):
        state = matched(anchors, own, crowd, positive=0.7, negative=0.3, fall_back=True)
        positive, negative = sampled(state, count, 0.5)
        learning += len(positive) + len(negative)
        chosen = row[torch.cat([positive, negative])]
        there = (torch.arange(len(chosen), device=row.device) < len(positive)).to(row.dtype)
        objects.append(F.binary_cross_entropy_with_logits(chosen, there, reduction="sum"))
        aim = coded(own[state[positive]], anchors[positive])
        boxes.append(F.smooth_l1_loss(code[positive], aim, beta=beta, reduction="sum"))
    total = count * len(logits) if fixed else max(learning, 1)
    return torch.stack(objects).sum() / total, torch.stack(boxes).sum() / total
