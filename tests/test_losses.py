"""Losses against torch, torchvision, scikit-learn, scipy and hand-worked numbers."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from sklearn.metrics import f1_score, jaccard_score, log_loss
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import sigmoid_focal_loss

from kirie import losses
from kirie.criterion import CombinedLoss, Term, build_loss
from kirie.errors import KirieError
from kirie.losses import LOSSES, check_labels
from kirie.weight_map import boundary_weights

VOID = 255
CHANNELS = [1, 4]
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
BOTH = pytest.mark.parametrize("channels", CHANNELS)


def make(channels, dtype=torch.float32, size=(2, 9, 11), void=True, seed=0):
    """Random logits, and labels with a void corner."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(size[0], channels, *size[1:], generator=random, dtype=torch.float64) * 2
    labels = torch.randint(max(channels, 2), size, generator=random)
    if void:
        labels[:, :3, :4] = VOID
    return logits.to(dtype), labels


def saturated(labels, channels, height=1e4):
    """Logits that are sure of these labels."""
    if channels == 1:
        return torch.where(labels == 1, height, -height)[:, None]
    return torch.full((len(labels), channels, *labels.shape[1:]), -height).scatter(1, labels[:, None], height)


# ---- what holds for all


@EVERY
@BOTH
def test_gradients_are_those_of_the_value(loss, channels):
    logits, labels = make(channels, torch.float64, (2, 3, 4), void=False)
    labels[0, 0, :2] = VOID
    weight = torch.linspace(0.5, 2, max(channels, 2), dtype=torch.float64)
    logits.requires_grad_()
    assert loss(logits, labels, void=VOID).dtype == torch.float64
    assert gradcheck(lambda x: loss(x, labels, void=VOID), logits)
    assert gradcheck(lambda x: loss(x, labels, void=VOID, weight=weight), logits)


@pytest.mark.parametrize("options", [{"gamma": 0.5}, {"gamma": 0.0}, {"gamma": 1.0}, {"alpha": None}])
@BOTH
def test_gradients_of_focal_options(channels, options):
    logits, labels = make(channels, torch.float64, (1, 3, 4), void=False)
    assert gradcheck(lambda x: losses.focal(x, labels, **options), logits.requires_grad_())


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.binary_cross_entropy])
@BOTH
def test_gradients_with_smoothing(loss, channels):
    logits, labels = make(channels, torch.float64, (1, 3, 4), void=False)
    assert gradcheck(lambda x: loss(x, labels, smoothing=0.2), logits.requires_grad_())


@EVERY
@BOTH
def test_void_pixels_change_nothing(loss, channels):
    logits, labels = make(channels)
    logits.requires_grad_()
    value = loss(logits, labels)
    value.backward()
    void = (labels == VOID)[:, None].expand_as(logits)
    assert logits.grad[void].eq(0).all()
    assert logits.grad[~void].ne(0).any()
    other = torch.where(void, 50 * torch.randn(logits.shape), logits.detach())
    assert loss(other, labels).item() == pytest.approx(value.item(), rel=1e-6)
    moved = loss(logits.detach(), labels.where(labels != VOID, 77), void=77)
    assert moved.item() == value.item()


@EVERY
@BOTH
@pytest.mark.parametrize("size", [(2, 5, 6), (0, 5, 6)])
def test_a_batch_of_void_is_zero_with_a_gradient(loss, channels, size):
    logits = torch.randn(size[0], channels, *size[1:], requires_grad=True)
    for options in [{}, {"smooth": 0.0}] if loss in (losses.dice, losses.tversky, losses.focal_tversky) else [{}]:
        value = loss(logits, torch.full(size, VOID), **options)
        value.backward()
        assert value.item() == 0
        assert logits.grad.eq(0).all()


@EVERY
@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(loss, channels, dtype):
    logits, labels = make(channels)
    half = logits.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, labels)
    assert value.dtype == torch.float32 and value.ndim == 0
    assert value.item() == loss(half.float(), labels).item()
    assert value.item() == pytest.approx(loss(logits, labels).item(), abs=0.03)


@EVERY
@BOTH
def test_huge_logits_stay_finite(loss, channels):
    logits, labels = make(channels)
    for sure in (logits.sign() * 1e4, saturated(labels.where(labels != VOID, 0), channels), torch.zeros_like(logits)):
        sure = sure.clone().requires_grad_()
        value = loss(sure, labels)
        value.backward()
        assert value.isfinite() and sure.grad.isfinite().all()
    sharp = {"gamma": 0.5} if loss in (losses.focal, losses.focal_tversky) else {}
    right = saturated(labels.where(labels != VOID, 0), channels).requires_grad_()
    value = loss(right, labels, **sharp)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6) and right.grad.isfinite().all()


@EVERY
@BOTH
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_gives_the_same(loss, channels, dtype):
    logits, labels = make(channels)
    assert loss(logits, labels.to(dtype)).item() == loss(logits, labels).item()


class Watch(TorchDispatchMode):
    """Notes every integer or bool tensor as large as the logits that is made inside."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found, self.calls = size, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        for value in result if isinstance(result, (tuple, list)) else [result]:
            truth = isinstance(value, torch.Tensor) and not value.dtype.is_floating_point
            if truth and value.untyped_storage().nbytes() // value.element_size() >= self.size:
                self.found.append(str(func))
        return result


@EVERY
def test_truth_is_never_spread_over_the_classes(loss):
    logits, labels = make(20)
    with Watch(logits.numel()) as watch:
        loss(logits.requires_grad_(), labels).backward()
    assert watch.calls > 5 and watch.found == []
    with Watch(logits.numel()) as watch:
        F.one_hot(labels.clamp(max=19), 20)
    assert watch.found, "the watch must see a one-hot copy"


# ---- per pixel, against torch, torchvision and scikit-learn


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@BOTH
def test_cross_entropy_is_torchs(channels, weighted, smoothing):
    logits, labels = make(channels)
    weight = torch.linspace(0.2, 3, max(channels, 2)) if weighted else None
    two = torch.cat([torch.zeros_like(logits), logits], 1) if channels == 1 else logits
    expected = F.cross_entropy(two, labels, weight, ignore_index=VOID, label_smoothing=smoothing)
    for loss in [losses.cross_entropy, losses.binary_cross_entropy][: 2 if channels == 1 else 1]:
        value = loss(logits, labels, weight=weight, smoothing=smoothing)
        assert value.item() == pytest.approx(expected.item(), rel=2e-6)


def test_cross_entropy_is_scikit_learns():
    logits, labels = make(4, void=False)
    chances = logits.softmax(1).movedim(1, 3).reshape(-1, 4).double().numpy()
    expected = log_loss(labels.flatten().numpy(), chances / chances.sum(1, keepdims=True))
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_one_against_the_rest_is_torchs(smoothing):
    logits, labels = make(4)
    valid = labels != VOID
    hot = F.one_hot(labels.where(valid, 0), 4).movedim(3, 1) * (1 - smoothing) + smoothing / 2
    each = F.binary_cross_entropy_with_logits(logits, hot, reduction="none").movedim(1, 3)[valid].mean(0)
    value = losses.binary_cross_entropy(logits, labels, smoothing=smoothing)
    assert value.item() == pytest.approx(each.mean().item(), rel=1e-6)
    weight = torch.tensor([1.0, 2.0, 0.0, 5.0])
    value = losses.binary_cross_entropy(logits, labels, smoothing=smoothing, weight=weight)
    assert value.item() == pytest.approx(((each * weight).sum() / 8).item(), rel=1e-6)


def test_one_weight_is_torchs_pos_weight_up_to_the_mean():
    logits, labels = make(1, void=False)
    value = losses.binary_cross_entropy(logits, labels, weight=torch.tensor([3.0]))
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0], labels.float(), pos_weight=torch.tensor([3.0]), reduction="sum"
    ) / (3 * labels.sum() + (1 - labels).sum())
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.5), (0.5, 0.0), (None, 3.0)])
def test_focal_is_torchvisions(alpha, gamma):
    logits, labels = make(1)
    valid = labels != VOID
    x, t = logits[:, 0][valid], labels[valid].float()
    expected = sigmoid_focal_loss(x, t, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="mean")
    value = losses.focal(logits, labels, alpha=alpha, gamma=gamma)
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)


@BOTH
def test_focal_without_focus_is_cross_entropy(channels):
    logits, labels = make(channels)
    weight = torch.linspace(0.5, 2, max(channels, 2))
    value = losses.focal(logits, labels, weight=weight, alpha=None, gamma=0)
    assert value.item() == pytest.approx(losses.cross_entropy(logits, labels, weight=weight).item(), rel=1e-6)


def test_focal_softmax_by_hand():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))[None, :, None, None]
    value = losses.focal(logits, torch.tensor([[[1]]]), alpha=0.25, gamma=2)
    assert value.item() == pytest.approx(0.25 * 0.7**2 * -math.log(0.3), rel=1e-6)


@pytest.mark.parametrize("name", ["ce", "bce", "dice", "focal", "tversky", "focal_tversky", "lovasz"])
@BOTH
def test_weights_are_relative(name, channels):
    logits, labels = make(channels)
    weight = torch.linspace(0.5, 2, max(channels, 2))
    one, two = (LOSSES[name](logits, labels, weight=factor * weight).item() for factor in (1, 7))
    assert one == pytest.approx(two, rel=1e-6)
    if channels > 1 or name in ("ce", "bce", "focal"):
        assert one != pytest.approx(LOSSES[name](logits, labels).item(), rel=1e-3)


# ---- regions


@BOTH
def test_dice_of_sure_predictions_is_one_minus_f1(channels):
    _, truth = make(channels, seed=1)
    guess = make(channels, void=False, seed=2)[1]
    value = losses.dice(saturated(guess, channels), truth, smooth=0)
    t, g = truth[truth != VOID].numpy(), guess[truth != VOID].numpy()
    expected = 1 - f1_score(t, g, average="binary" if channels == 1 else "macro")
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_dice_averages_the_classes_of_the_truth():
    truth = torch.tensor([[[0, 0, 0, 1]]])
    guess = torch.tensor([[[0, 0, 2, 1]]])  # class 0: 2 * 2 / (3 + 2); class 1: perfect; 2 and 3 are not in the truth
    assert losses.dice(saturated(guess, 4), truth, smooth=0).item() == pytest.approx((0.2 + 0) / 2, abs=1e-6)
    weight = torch.tensor([3.0, 1.0, 9.0, 9.0])
    value = losses.dice(saturated(guess, 4), truth, smooth=0, weight=weight)
    assert value.item() == pytest.approx(0.15, abs=1e-6)


def test_dice_is_the_binary_formula():
    logits, labels = make(1, void=False)
    p, t = logits.sigmoid().flatten(), labels.flatten()
    expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert losses.dice(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses.dice(torch.full((1, 1, 4, 4), -1e4), torch.zeros(1, 4, 4, dtype=torch.long), smooth=0).item() == 0


@BOTH
def test_dice_keeps_its_digits_on_large_batches(channels):
    size = (1, 2400, 2000)
    logits = torch.full((1, channels, *size[1:]), 0.3)
    logits[:, 0] = 1.1
    labels = torch.ones(size, dtype=torch.uint8)
    labels[:, :3] = 0
    expected = losses.dice(logits.double(), labels).item()
    assert losses.dice(logits, labels).item() == pytest.approx(expected, abs=2e-5)
    chance = logits.softmax(1)[:, 1] if channels > 1 else logits.sigmoid()
    plain = torch.zeros(2).scatter_add(0, labels.flatten().long(), chance.flatten())[1].item()
    assert abs(plain / (4_794_000 * chance[..., 0, 0].item()) - 1) > 1e-4, "one running float32 sum loses digits here"


@BOTH
def test_tversky_at_one_half_is_dice(channels):
    logits, labels = make(channels)
    value = losses.tversky(logits, labels, alpha=0.5, beta=0.5, smooth=1.5)
    assert value.item() == pytest.approx(losses.dice(logits, labels, smooth=3.0).item(), rel=1e-6)


def test_tversky_by_hand():
    truth = torch.tensor([[[1, 1, 1, 1, 0, 0, 0, 0]]])
    guess = torch.tensor([[[1, 1, 1, 0, 1, 1, 0, 0]]])  # TP 3, FP 2, FN 1
    sure = saturated(guess, 1)
    assert losses.tversky(sure, truth).item() == pytest.approx(1 - 4 / (3 + 0.6 + 0.7 + 1), rel=1e-6)
    assert losses.tversky(sure, truth, smooth=0).item() == pytest.approx(1 - 3 / 4.3, rel=1e-6)
    assert losses.tversky(sure, truth, alpha=1, beta=1, smooth=0).item() == pytest.approx(0.5, rel=1e-6)  # Jaccard
    value = losses.focal_tversky(sure, truth, smooth=0, gamma=0.5)
    assert value.item() == pytest.approx(math.sqrt(1 - 3 / 4.3), rel=1e-6)
    # Two classes: background has TP 2, FP 1, FN 2, and each is raised before the mean.
    expected = ((1 - 3 / 4.3) ** 0.75 + (1 - 2 / 3.7) ** 0.75) / 2
    assert losses.focal_tversky(saturated(guess, 2), truth, smooth=0).item() == pytest.approx(expected, rel=1e-6)


# ---- Lovasz


def test_lovasz_softmax_of_sure_predictions_is_one_minus_jaccard():
    _, truth = make(4, seed=1)
    guess = make(4, void=False, seed=2)[1]
    t, g = truth[truth != VOID].numpy(), guess[truth != VOID].numpy()
    value = losses.lovasz(saturated(guess, 4), truth)
    assert value.item() == pytest.approx(1 - jaccard_score(t, g, average="macro"), abs=1e-6)
    assert losses.lovasz(saturated(truth.where(truth != VOID, 2), 4), truth).item() == 0


def test_lovasz_averages_the_classes_of_the_truth():
    truth, guess = torch.tensor([[[0, 0, 0, 1]]]), torch.tensor([[[0, 0, 2, 1]]])
    assert losses.lovasz(saturated(guess, 4), truth).item() == pytest.approx((1 / 3 + 0) / 2, abs=1e-6)


def extension_by_definition(errors, inside):
    """Lovasz extension as in Berman et al., eq. 8: the set function itself along the sorted errors."""

    def lost(wrong):  # 1 - Jaccard when exactly these pixels are wrong
        kept, union = (inside & ~wrong).sum(), (inside | wrong).sum()
        return 1 - kept / union if union else 0.0

    wrong, total = np.zeros(len(errors), bool), 0.0
    for place in np.argsort(-errors, kind="stable"):
        before = lost(wrong)
        wrong[place] = True
        total += errors[place] * (lost(wrong) - before)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_lovasz_is_its_definition(seed):
    logits, labels = make(3, torch.float64, (2, 4, 4), seed=seed)
    valid = labels != VOID
    chances, truth = logits.softmax(1).movedim(1, 3)[valid].numpy(), labels[valid].numpy()
    each = [
        extension_by_definition(np.abs((truth == k) - chances[:, k]), truth == k) for k in range(3) if k in set(truth)
    ]
    assert losses.lovasz(logits, labels).item() == pytest.approx(np.mean(each), rel=1e-12)
    labels = labels.where(labels != 2, 0)
    x, t = logits[:, 0][valid].numpy(), labels[valid].numpy()
    expected = extension_by_definition(np.maximum(1 - x * (2 * t - 1), 0), t == 1)
    assert losses.lovasz(logits[:, :1], labels).item() == pytest.approx(expected, rel=1e-12)


def test_lovasz_hinge_by_hand():
    # Errors 1 - x s: object 0.5 and 2, rest 3 and 0. By size: 3 (rest: 0 -> 1/3), 2 (object: -> 2/3), 0.5 (-> 1).
    logits = torch.tensor([[[[0.5, -1.0, 2.0, -1.0]]]])
    truth = torch.tensor([[[1, 1, 0, 0]]])
    assert losses.lovasz(logits, truth).item() == pytest.approx(3 / 3 + 2 / 3 + 0.5 / 3, rel=1e-6)
    # An empty object is lost with its first wrong pixel, so only the largest error counts.
    assert losses.lovasz(logits, torch.zeros_like(truth)).item() == pytest.approx(3.0, rel=1e-6)


# ---- boundary


def three_objects():
    labels = np.zeros((40, 60), np.uint8)
    labels[5:20, 4:20] = 1
    labels[7:25, 23:40] = 2
    labels[30:36, 10:50] = 1
    labels[0:2, :5] = VOID
    return labels


@pytest.mark.parametrize(("w0", "sigma"), [(10.0, 5.0), (3.0, 1.5), (0.5, 12.0), (0.0, 5.0)])
def test_boundary_weights_are_the_formula(w0, sigma):
    labels = three_objects()
    regions, count = ndimage.label((labels > 0) & (labels != VOID))
    assert count == 3
    near = np.sort([ndimage.distance_transform_edt(regions != k) for k in (1, 2, 3)], axis=0)
    expected = 1 + w0 * np.exp(-((near[0] + near[1]) ** 2) / (2 * sigma**2))
    weights = boundary_weights(labels, w0, sigma, VOID)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights[labels != VOID], expected[labels != VOID], rtol=1e-6)
    assert (weights[labels == VOID] == 0).all()
    np.testing.assert_array_equal(
        weights, boundary_weights(labels, w0, sigma, VOID, instance_ids=regions * 1000 - 7000 * (regions == 3))
    )


def test_boundary_weights_by_hand():
    row = np.array([[1, 0, 0, 0, 1]])
    weights = boundary_weights(row, w0=10, sigma=2)  # d1 + d2 is 4 everywhere between the two, and on them
    np.testing.assert_allclose(weights, np.full((1, 5), 1 + 10 * math.exp(-2)), rtol=1e-6)
    np.testing.assert_array_equal(boundary_weights(np.array([[1, 1, 0]])), np.ones((1, 3)))
    np.testing.assert_array_equal(boundary_weights(np.zeros((2, 3), int)), np.ones((2, 3)))
    corner = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 0]])  # one object: corners join, whatever the class
    np.testing.assert_array_equal(boundary_weights(corner), np.ones((3, 3)))
    touching = boundary_weights(np.ones((1, 2), int), w0=4, sigma=1, instance_ids=np.array([[9, 3]]))
    np.testing.assert_allclose(touching, np.full((1, 2), 1 + 4 * math.exp(-0.5)), rtol=1e-6)
    full = boundary_weights(np.ones((1, 3), int), instance_ids=np.full((1, 3), 5))
    np.testing.assert_array_equal(full, np.ones((1, 3)))


def test_boundary_weights_refuse_other_shapes():
    with pytest.raises(KirieError, match=r"\(1, 2, 2\)"):
        boundary_weights(np.zeros((1, 2, 2)))
    with pytest.raises(KirieError, match="same size"):
        boundary_weights(np.zeros((2, 2)), instance_ids=np.zeros((2, 3)))
    with pytest.raises(KirieError, match="sigma"):
        boundary_weights(np.zeros((2, 2)), sigma=0)


@BOTH
def test_boundary_cross_entropy_weighs_pixels_by_the_map(channels):
    labels = torch.from_numpy(np.stack([three_objects(), three_objects()[::-1].copy()])).long()
    if channels == 1:
        labels = labels.where(labels != 2, 1)
    logits = make(channels, size=labels.shape)[0]
    two = torch.cat([torch.zeros_like(logits), logits], 1) if channels == 1 else logits
    each = F.cross_entropy(two, labels, ignore_index=VOID, reduction="none")
    maps = torch.from_numpy(np.stack([boundary_weights(picture, 6, 3, VOID) for picture in labels.numpy()]))
    value = losses.boundary_cross_entropy(logits, labels, w0=6, sigma=3)
    assert value.item() == pytest.approx(((each * maps).sum() / maps.sum()).item(), rel=1e-5)
    weight = torch.linspace(1, 3, max(channels, 2))
    share = (maps - 1 + weight[labels.clamp(max=len(weight) - 1)]) * (labels != VOID)
    value = losses.boundary_cross_entropy(logits, labels, w0=6, sigma=3, weight=weight)
    assert value.item() == pytest.approx(((each * share).sum() / share.sum()).item(), rel=1e-5)
    plain = losses.boundary_cross_entropy(logits, labels, w0=0, weight=weight)
    assert plain.item() == pytest.approx(losses.cross_entropy(logits, labels, weight=weight).item(), rel=1e-6)


# ---- misfits


@EVERY
@pytest.mark.parametrize(("channels", "ids", "named"), [(4, [7, 4, 19], "4, 7, 19"), (1, [2], "2"), (4, [-1], "-1")])
def test_foreign_ids_are_named(loss, channels, ids, named):
    logits, labels = make(channels)
    labels[1, 4, : len(ids)] = torch.tensor(ids)
    with pytest.raises(KirieError, match=rf"class ids {named}, but {max(channels, 2)} classes allow"):
        loss(logits, labels)


def test_check_labels():
    check_labels(torch.tensor([0, 4, 255]), 5)
    check_labels(torch.tensor([0, 4, 255], dtype=torch.uint8), 5)
    with pytest.raises(KirieError, match="255, but"):
        check_labels(torch.tensor([0, 255], dtype=torch.uint8), 5, void=65535)
    check_labels(torch.empty(0, dtype=torch.long), 5)
    with pytest.raises(KirieError, match=r"255, but 5 classes allow 0\.\.4 and 9 for void"):
        check_labels(torch.tensor([9, 255]), 5, void=9)
    with pytest.raises(KirieError, match=r"5, 6, 7, 8, 9, 10, 11, 12, 13, 14, \.\.\., but"):
        check_labels(torch.arange(40), 5)


@EVERY
def test_misfits_are_refused(loss):
    logits, labels = make(4)
    for bad, message in [(labels[:, None], "channel axis"), (labels[:, :-1], "one size"), (labels[:1], "one size")]:
        with pytest.raises(KirieError, match=message):
            loss(logits, bad)
    for x, t in [(logits, labels.float()), (logits, labels == 1), (logits.long(), labels)]:
        with pytest.raises(KirieError, match="float logits and integer labels"):
            loss(x, t)
    with pytest.raises(KirieError, match="logits are on cpu and labels on meta"):
        loss(logits, torch.empty(labels.shape, dtype=torch.long, device="meta"))
    with pytest.raises(KirieError, match=r"weight must be \(4,\).* got \(3,\)"):
        loss(logits, labels, weight=torch.ones(3))


@pytest.mark.parametrize(
    ("name", "option"),
    [("ce", {"smoothing": 1.5}), ("focal", {"alpha": 25}), ("focal", {"gamma": -1}), ("dice", {"smooth": math.nan}),
     ("tversky", {"beta": math.inf}), ("boundary_ce", {"sigma": 0})],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(name, option):
    (key,) = option
    with pytest.raises(KirieError, match=f"{key} must be a number in"):
        LOSSES[name](*make(4), **option)


# ---- recipe strings


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ce", [Term("ce")]),
        ("dice+bce", [Term("dice"), Term("bce")]),
        (" 0.3 * focal + .7*tversky ", [Term("focal", 0.3), Term("tversky", 0.7)]),
        ("focal(alpha=0.25,gamma=2)+dice", [Term("focal", 1.0, (("alpha", 0.25), ("gamma", 2.0))), Term("dice")]),
        ("ce( smoothing = 0.1 )", [Term("ce", 1.0, (("smoothing", 0.1),))]),
        ("1e+1*ce+2.E-1*dice(smooth=1e+2)", [Term("ce", 10.0), Term("dice", 0.2, (("smooth", 100.0),))]),
        ("boundary_ce(w0=5)+lovasz+focal_tversky(gamma=1.5)",
         [Term("boundary_ce", 1.0, (("w0", 5.0),)), Term("lovasz"), Term("focal_tversky", 1.0, (("gamma", 1.5),))]),
    ],
)  # fmt: skip
def test_strings_are_read(text, terms):
    assert build_loss(text) == CombinedLoss(tuple(terms))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read '' as a loss"),
        ("  ", "cannot read"),
        ("ce+", "cannot read"),
        ("+ce", "cannot read"),
        ("dice++ce", "cannot read"),
        ("2*3*ce", "cannot read"),
        ("ce(smoothing=0.1", "cannot read"),
        ("dice bce", "cannot read"),
        ("ce)(", "cannot read"),
        ("huber", r"unknown loss 'huber'.*'bce', 'boundary_ce', 'ce', 'dice', 'focal'"),
        ("CE", "unknown loss 'CE'"),
        ("2*", "unknown loss ''"),
        ("ce()", "unknown option ''.*smoothing"),
        ("ce(0.1)", "unknown option '0.1'"),
        ("ce(void=3)", r"unknown option 'void' of loss ce; it takes \['smoothing'\]"),
        ("dice(gamma=2)", "unknown option 'gamma'"),
        ("lovasz(smooth=1)", "it takes no options"),
        ("focal(gamma=2,gamma=3)", "repeated option 'gamma'"),
        ("focal(gamma=2,)", "unknown option ''"),
        ("focal(gamma)", "gamma of focal must be a plain number.* got ''"),
        ("focal(gamma=two)", "gamma of focal must be a plain number.* got 'two'"),
        ("focal(gamma=nan)", "plain number"),
        ("focal(gamma=1_0)", "plain number"),
        ("focal(gamma=1e999)", "plain number"),
        ("focal(gamma=-1)", "plain number"),
        ("focal(alpha=25)", r"alpha must be a number in \[0, 1\], got 25"),
        ("-1*ce", "factor of ce must be a plain number"),
        ("x*ce", "factor of ce"),
        ("*ce", "factor of ce"),
        ("0*ce", "leave the term out"),
        ("ce+dice+2*ce", "repeats a term"),
        ("__import__('os')", "unknown loss"),
    ],
)
def test_bad_strings_are_refused(text, message):
    with pytest.raises(KirieError, match=message):
        build_loss(text)


@pytest.mark.parametrize("weight", [[1.0, -1.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_bad_weights_are_refused(weight):
    with pytest.raises(KirieError, match="class weights"):
        build_loss("ce", weight=weight)


@BOTH
def test_a_built_loss_calls_the_named_ones(channels):
    logits, labels = make(channels)
    labels = labels.where(labels != VOID, 9)
    weight = torch.linspace(0.5, 2, max(channels, 2))
    built = build_loss("0.3*focal(gamma=3)+2*dice+ce(smoothing=0.1)", void=9, weight=weight)
    found = pickle.loads(pickle.dumps(built))(logits.bfloat16(), labels)
    logits = logits.bfloat16().float()
    options = {"void": 9, "weight": weight}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "focal": 0.3 * losses.focal(logits, labels, gamma=3, **options).item(),
            "dice": 2 * losses.dice(logits, labels, **options).item(),
            "ce": losses.cross_entropy(logits, labels, smoothing=0.1, **options).item(),
        }
    )
    assert all(value.dtype == torch.float32 for value in found.values())
    assert list(build_loss("bce+dice")(logits, labels.where(labels != 9, 255))) == ["bce", "dice"]


def test_every_loss_can_be_named_with_every_option():
    logits, labels = make(4)
    labels[:, :, 5:8] = 0  # parts the objects
    taken = {"ce": ["smoothing"], "bce": ["smoothing"], "dice": ["smooth"], "focal": ["alpha", "gamma"],
             "tversky": ["alpha", "beta", "smooth"], "focal_tversky": ["alpha", "beta", "gamma", "smooth"],
             "lovasz": [], "boundary_ce": ["w0", "sigma"]}  # fmt: skip
    assert taken.keys() == LOSSES.keys()
    for name, options in taken.items():
        plain = LOSSES[name](logits, labels).item()
        for option in options:
            assert build_loss(f"{name}({option}=0.9)")(logits, labels)[name].item() != pytest.approx(plain, rel=1e-4)


def test_all_losses_fall_when_the_prediction_nears_the_truth():
    for channels, (name, loss) in itertools.product(CHANNELS, LOSSES.items()):
        logits, labels = make(channels)
        target = saturated(labels.where(labels != VOID, 0), channels, 6.0)
        steps = [loss(logits.lerp(target, part), labels).item() for part in (0, 0.3, 0.6, 1)]
        assert steps == sorted(steps, reverse=True) and steps[0] > steps[-1], name
