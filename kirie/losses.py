"""Losses on logits and label maps; `criterion.py` reads sums of them such as `0.3*focal+0.7*tversky`.

Every loss takes `logits` (B, K, H, W) and integer `labels` (B, H, W), and gives one float32 scalar (float64 for float64
logits): half precision is widened first and autocast is off inside. K >= 2 means softmax over class ids 0..K-1;
K == 1 means one sigmoid foreground logit with labels 0 and 1. Five things hold for all of them:

- **Void**: pixels whose label is `void` change neither value nor gradient; a batch of nothing but void gives 0.
- **Weights** are relative: losses are weighted means, so doubling all of `weight` changes nothing (except against `w0`
  in `boundary_cross_entropy`). `weight` is (K,); for K == 1 it is (2,), background and foreground, or (1,), foreground
  beside a background of 1. Region losses with K == 1 know one class only and have nothing to weigh.
- **Truth is never copied as one-hot**: true values are gathered, and class sums are scattered row by row, which also
  keeps float32 sums true on batches of any size.
- **Misfits raise KirieError**: shapes, dtypes, devices, numbers out of range.
- **Label ids are checked** where that costs nothing: always on the CPU. On an accelerator reading them back would hold
  up the queue in every step, so there a foreign id stops in torch's own index assertion; `check_labels` says it
  properly on any device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kirie.errors import KirieError
from kirie.weight_map import boundary_weights

Loss = TypeVar("Loss", bound=Callable[..., Tensor])

RANGES = {  # of every number a loss may take, ends included
    "smoothing": (0.0, 1.0),
    "smooth": (0.0, math.inf),
    "alpha": (0.0, 1.0),
    "beta": (0.0, 1.0),
    "gamma": (0.0, math.inf),
    "w0": (0.0, math.inf),
    "sigma": (1e-3, math.inf),
}


class _Pixels(NamedTuple):
    logits: Tensor  # (B, K, H, W) float32 or float64
    labels: Tensor  # (B, H, W) int64, 0 where void
    valid: Tensor  # (B, H, W) bool


def _guarded(loss: Loss) -> Loss:
    """The same loss with its numbers checked first and autocast switched off inside."""

    @functools.wraps(loss)
    def guarded(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        check_numbers(options)
        with torch.autocast(logits.device.type, enabled=False):
            return loss(logits, labels, **options)

    return cast(Loss, guarded)


# ---- losses per pixel


@_guarded
def cross_entropy(
    logits: Tensor, labels: Tensor, *, void: int = 255, weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean negative log probability of the true class.

    Equals `torch.nn.functional.cross_entropy` with `ignore_index`, `weight` and `label_smoothing`; for K == 1 that of
    the two logits (0, x).

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) integer class ids.
        void: the label to leave out.
        weight: relative weight of each class (see the module).
        smoothing: share of the truth spread evenly over the classes, in [0, 1].
    """
    pixels = _pixels(logits, labels, void)
    table = _weights(weight, pixels.logits)
    own = table[pixels.labels]  # (B, H, W)
    if smoothing == 0:
        losses = own * _true_nll(pixels)
    elif logits.shape[1] == 1:
        margin = _margin(pixels)
        right, wrong = own * _softplus(-margin), table.flip(0)[pixels.labels] * _softplus(margin)
        losses = right + smoothing / 2 * (wrong - right)
    else:
        logs = F.log_softmax(pixels.logits, dim=1)
        spread = -(logs * table[:, None, None]).mean(dim=1)
        losses = (1 - smoothing) * own * -_at_truth(logs, pixels.labels) + smoothing * spread
    return _ratio(losses, own, pixels.valid)


@_guarded
def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, void: int = 255, weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean sigmoid cross entropy; for K >= 2 of each class against the rest, averaged over the classes.

    For K == 1 this is `cross_entropy`, `weight` weighing pixels by their true class; for K >= 2 `weight` weighs the K
    one-vs-rest losses. Smoothing moves the targets 1 and 0 to 1 - smoothing / 2 and smoothing / 2.
    """
    if logits.ndim == 4 and logits.shape[1] == 1:
        return cross_entropy(logits, labels, void=void, weight=weight, smoothing=smoothing)
    pixels = _pixels(logits, labels, void)
    table = _weights(weight, pixels.logits)
    share = table / table.sum()
    everywhere = _softplus(pixels.logits) - smoothing / 2 * pixels.logits  # as if no class were true
    true = (1 - smoothing) * share[pixels.labels] * _at_truth(pixels.logits, pixels.labels)
    losses = (everywhere * share[:, None, None]).sum(dim=1) - true
    return _ratio(losses, torch.ones_like(losses), pixels.valid)


@_guarded
def focal(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int = 255,
    weight: Tensor | None = None,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Mean cross entropy with easy pixels turned down by (1 - p_true)^gamma (Lin et al. 2017, eq. 5).

    For K == 1 `alpha` weighs foreground and 1 - `alpha` background, as in torchvision's `sigmoid_focal_loss`. For
    K >= 2 (softmax) `alpha` is one factor for all pixels; per class balance is what `weight` is for. With gamma 0 and
    alpha None it is `cross_entropy`.
    """
    pixels = _pixels(logits, labels, void)
    own = _weights(weight, pixels.logits)[pixels.labels]
    nll = _true_nll(pixels)
    # Clamped because the slope of 0^gamma is infinite for gamma < 1.
    doubt = (-torch.expm1(-nll)).clamp_min(torch.finfo(nll.dtype).tiny)  # 1 - p_true
    losses = own * doubt**gamma * nll
    if alpha is not None:
        foreground = pixels.labels.to(losses.dtype)
        losses = losses * ((1 - alpha) + (2 * alpha - 1) * foreground if logits.shape[1] == 1 else alpha)
    return _ratio(losses, own, pixels.valid)


@_guarded
def boundary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int = 255,
    weight: Tensor | None = None,
    w0: float = 10.0,
    sigma: float = 5.0,
) -> Tensor:
    """Mean cross entropy that counts narrow gaps between objects more (Ronneberger et al. 2015, eq. 1 and 2).

    A pixel weighs `weight[class] + w0 * exp(-(d1 + d2)^2 / (2 sigma^2))`, as `boundary_weights` gives it with the
    connected foreground regions of each picture as objects; the sum is divided by the sum of these weights, so that
    `w0` 0 is `cross_entropy`. The map is made on the CPU from the labels, one distance transform per object (about
    0.3 ms each): with labels on an accelerator every step waits for the copy.
    """
    pixels = _pixels(logits, labels, void)
    maps = [boundary_weights(picture, w0, sigma, void) for picture in labels.detach().cpu().numpy()]
    extra = torch.from_numpy(np.stack(maps) if maps else np.zeros(labels.shape, np.float32)) - 1  # (B, H, W)
    share = _weights(weight, pixels.logits)[pixels.labels] + extra.to(pixels.logits)
    return _ratio(share * _true_nll(pixels), share, pixels.valid)


# ---- losses per region


@_guarded
def dice(
    logits: Tensor, labels: Tensor, *, void: int = 255, weight: Tensor | None = None, smooth: float = 1.0
) -> Tensor:
    """1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), sums over all pixels of the batch.

    K == 1: of the foreground. K >= 2: the mean over the classes that occur in the batch's truth, background included;
    a class that is predicted but absent counts only through the true classes it takes pixels from.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) integer class ids.
        void: the label to leave out.
        weight: relative weight of each class in the mean.
        smooth: pixels added above and below; with 0, an empty class that is predicted empty counts as perfect.
    """
    pixels = _pixels(logits, labels, void)
    overlap, predicted, true = _class_sums(pixels)
    score = _score(2 * overlap + smooth, predicted + true + smooth)
    return _mean_over_present(1 - score, true, weight, pixels)


@_guarded
def tversky(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int = 255,
    weight: Tensor | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
) -> Tensor:
    """1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth), averaged over classes as in `dice` (Salehi et al. 2017).

    `alpha` weighs false positives and `beta` false negatives, so the default favours finding everything. With both 0.5
    it is `dice` with twice the `smooth`.
    """
    pixels = _pixels(logits, labels, void)
    lost, true = _tversky_losses(pixels, alpha, beta, smooth)
    return _mean_over_present(lost, true, weight, pixels)


@_guarded
def focal_tversky(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int = 255,
    weight: Tensor | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    smooth: float = 1.0,
) -> Tensor:
    """(1 - Tversky index)^gamma, averaged over classes as in `dice` (Abraham & Khan 2019, eq. 4).

    `gamma` is the exponent itself; the paper writes it as 1 / gamma with 4/3.
    """
    pixels = _pixels(logits, labels, void)
    lost, true = _tversky_losses(pixels, alpha, beta, smooth)
    some = lost > torch.finfo(lost.dtype).eps  # the slope of 0^gamma is infinite for gamma < 1
    raised = torch.where(some, torch.where(some, lost, 1) ** gamma, 0)
    return _mean_over_present(raised, true, weight, pixels)


@_guarded
def lovasz(logits: Tensor, labels: Tensor, *, void: int = 255, weight: Tensor | None = None) -> Tensor:
    """The Lovasz extension of 1 - Jaccard over all pixels of the batch (Berman et al. 2018).

    K >= 2: Lovasz-softmax, the mean over the classes that occur in the truth. K == 1: Lovasz hinge of the foreground,
    which is not bounded by 1. Sorts all pixels once per class and, for K >= 2, reads back which classes occur.
    """
    pixels = _pixels(logits, labels, void)
    if logits.shape[1] == 1:
        return _lovasz_extension(F.relu(1 - _margin(pixels)), pixels.labels == 1, pixels.valid)
    probabilities = F.softmax(pixels.logits, dim=1)
    classes = probabilities.unbind(dim=1)  # one stack on the way back, where K slices would each fill a (B, K, H, W)
    true = _sum_by_class(pixels.valid.to(probabilities.dtype), pixels.labels, len(classes))
    losses = [probabilities.sum() * 0] * len(classes)
    for k in true.nonzero().flatten().tolist():
        inside = (pixels.labels == k) & pixels.valid
        errors = torch.where(inside, 1 - classes[k], classes[k])
        losses[k] = _lovasz_extension(errors, inside, pixels.valid)
    return _mean_over_present(torch.stack(losses), true, weight, pixels)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "bce": binary_cross_entropy,
    "dice": dice,
    "focal": focal,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "lovasz": lovasz,
    "boundary_ce": boundary_cross_entropy,
}


# ---- shared by the losses


def check_labels(labels: Tensor, count: int, *, void: int = 255) -> None:
    """Nothing, if every label is in 0..count-1 or void; costs one pass, and on an accelerator one wait for it.

    Raises:
        KirieError: naming the ids that do not belong.
    """
    labels = labels.long()  # in uint8, 65535 would wrap round to 255
    inside = labels.where(labels != void, 0)
    if labels.numel() == 0 or bool((inside.min() >= 0) & (inside.max() < count)):
        return
    foreign = np.unique(inside[(inside < 0) | (inside >= count)].cpu().numpy())
    named = ", ".join(map(str, foreign[:10])) + (", ..." if len(foreign) > 10 else "")
    raise KirieError(
        f"labels hold the class ids {named}, but {count} classes allow 0..{count - 1} and {void} for void; "
        "map the ids of the files to 0..K-1 or to void first"
    )


def _pixels(logits: Tensor, labels: Tensor, void: int) -> _Pixels:
    """Logits widened and labels made safe to index with, after checking that the two belong together."""
    if logits.ndim != 4 or labels.ndim != 3 or (logits.shape[0], *logits.shape[2:]) != tuple(labels.shape):
        raise KirieError(
            f"a loss needs logits (B, K, H, W) and labels (B, H, W) of one size, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}; resize the logits to the labels first, and give labels no channel axis"
        )
    if labels.dtype == torch.bool or labels.dtype.is_floating_point or not logits.dtype.is_floating_point:
        raise KirieError(f"a loss needs float logits and integer labels, got {logits.dtype} and {labels.dtype}")
    if logits.device != labels.device:
        raise KirieError(f"logits are on {logits.device} and labels on {labels.device}; move one to the other")
    labels = labels.long()
    if labels.device.type == "cpu":
        check_labels(labels, max(logits.shape[1], 2), void=void)
    valid = labels != void
    return _Pixels(widened(logits), labels.where(valid, 0), valid)


def widened(logits: Tensor) -> Tensor:
    """The logits as float32, or as they are when they are float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def check_numbers(options: Mapping[str, Any]) -> None:
    """Raises a KirieError for the first of a loss's options, by name, that lies outside its row of `RANGES`."""
    for name, value in options.items():
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if name in RANGES and value is not None and not (low <= value <= high and math.isfinite(value)):
            raise KirieError(f"{name} must be a number in [{low:g}, {high:g}], got {value}")


def _weights(weight: Tensor | None, logits: Tensor) -> Tensor:
    """One weight per class id, (max(K, 2),), on the logits' device."""
    count = logits.shape[1]
    if weight is None:
        return torch.ones(max(count, 2), dtype=logits.dtype, device=logits.device)
    if weight.shape not in ({(1,), (2,)} if count == 1 else {(count,)}):
        wanted = "(2,) or (1,)" if count == 1 else f"({count},)"
        raise KirieError(f"weight must be {wanted} for {count} logit channels, got {tuple(weight.shape)}")
    # From a CPU tensor a waiting copy would hold up the queue in every step.
    weight = weight.to(logits.device, logits.dtype, non_blocking=logits.is_cuda)
    return torch.cat([torch.ones_like(weight), weight]) if len(weight) == 1 else weight


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=40)  # torch's 20 is short of float64


def _at_truth(values: Tensor, labels: Tensor) -> Tensor:
    return values.gather(1, labels[:, None])[:, 0]  # (B, K, H, W) -> (B, H, W)


def _margin(pixels: _Pixels) -> Tensor:
    """The foreground logit, negated where the truth is background; (B, H, W). K == 1 only."""
    sign = 2 * torch.arange(2, device=pixels.labels.device) - 1  # indexed, so that foreign ids cannot pass
    return pixels.logits[:, 0] * sign[pixels.labels]


def _true_nll(pixels: _Pixels) -> Tensor:
    """Negative log probability of the true class, (B, H, W)."""
    if pixels.logits.shape[1] == 1:
        return _softplus(-_margin(pixels))
    return -_at_truth(F.log_softmax(pixels.logits, dim=1), pixels.labels)


def _ratio(losses: Tensor, share: Tensor, valid: Tensor) -> Tensor:
    """Sum of losses over sum of shares, both of valid pixels; 0 where there are none."""
    total = (share * valid).sum()
    return (losses * valid).sum() / torch.where(total > 0, total, 1)


def _sum_by_class(values: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sums of values (B, H, W) by label, (count,).

    First within each row: adding millions of numbers one by one to one float32 would lose them.
    """
    rows = values.new_zeros(*values.shape[:2], count)  # (B, H, K)
    return rows.scatter_add(2, labels, values).sum(dim=(0, 1))


def _class_sums(pixels: _Pixels) -> tuple[Tensor, Tensor, Tensor]:
    """Per class sum(p t), sum(p) and sum(t) over the valid pixels; each (K,), foreground alone for K == 1."""
    count = pixels.logits.shape[1]
    valid = pixels.valid.to(pixels.logits.dtype)
    probabilities = (F.softmax(pixels.logits, dim=1) if count > 1 else pixels.logits.sigmoid()) * valid[:, None]
    own = _at_truth(probabilities, pixels.labels) if count > 1 else probabilities[:, 0]
    bins = max(count, 2)
    overlap = _sum_by_class(own, pixels.labels, bins)[-count:]
    true = _sum_by_class(valid, pixels.labels, bins)[-count:]
    return overlap, probabilities.sum(dim=(0, 2, 3)), true


def _score(top: Tensor, bottom: Tensor) -> Tensor:
    some = bottom > 0
    return torch.where(some, top / torch.where(some, bottom, 1), 1)


def _tversky_losses(pixels: _Pixels, alpha: float, beta: float, smooth: float) -> tuple[Tensor, Tensor]:
    overlap, predicted, true = _class_sums(pixels)
    wrong = alpha * (predicted - overlap) + beta * (true - overlap)
    return 1 - _score(overlap + smooth, overlap + wrong + smooth), true


def _mean_over_present(losses: Tensor, true: Tensor, weight: Tensor | None, pixels: _Pixels) -> Tensor:
    table = _weights(weight, pixels.logits)
    return losses[0] if len(losses) == 1 else _ratio(losses * table, table, true > 0)


def _lovasz_extension(errors: Tensor, inside: Tensor, valid: Tensor) -> Tensor:
    """Errors (B, H, W), each times what its pixel adds to 1 - Jaccard once all pixels with larger errors are wrong.

    The steps are written in closed form, since differences of neighbouring Jaccard values drown in float32: a pixel of
    the object lowers the intersection I by 1 and adds 1 / U, another raises the union U by 1 and adds I / (U (U - 1)).
    """
    with torch.no_grad():
        order = torch.where(valid, errors, -1).flatten().argsort(descending=True, stable=True)  # void comes last
        hit = inside.flatten()[order]
        missed = hit.cumsum(0)
        intersection = inside.sum() - missed
        union = inside.sum() + torch.arange(1, len(order) + 1, device=order.device) - missed
        intersection, union = intersection.to(errors.dtype), union.to(errors.dtype)
        steps = torch.where(hit, 1 / union, intersection / (union * (union - 1).clamp_min(1)))
        steps[:1] += ~inside.any()  # of an empty object, the first wrong pixel takes Jaccard from 1 to 0
        share = torch.empty_like(steps).scatter_(0, order, steps).view_as(errors) * valid
    return (errors * share).sum()
