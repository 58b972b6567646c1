"""Optimisers, the learning rate over the steps, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Schedule = Callable[[int], float]


def optimiser(model: nn.Module, name: str, *, learning_rate: float, weight_decay: float, momentum: float) -> Any:
    """AdamW or SGD over the model's trainable parameters; norms and biases are not decayed.

    Args:
        model: what to train.
        name: "adamw" or "sgd".
        learning_rate: at its highest.
        weight_decay: of tensors with two or more axes.
        momentum: of SGD (Nesterov).
    """
    learned = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0)


def schedule(name: str, *, steps: int, warmup: float) -> Schedule:
    """The learning rate's factor in [0, 1] for a step in 0..steps-1.

    Args:
        name: "cosine" (to 0), "poly" (power 0.9, to 0) or "constant".
        steps: of the whole training.
        warmup: share of the steps during which the factor rises to 1 in a straight line.
    """
    rise = round(steps * warmup)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        done = min((step - rise) / max(steps - rise, 1), 1.0)
        if name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return float((1 - done) ** 0.9) if name == "poly" else 1.0

    return factor


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows its weights slowly; in the first steps faster, so that it forgets the start.

    Args:
        model: what to follow, batch norm's running statistics included.
        decay: share of the old average that is kept at each step, in the long run.
    """

    @torch.no_grad()
    def follow(averages: Any, currents: Any, seen: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # counters
            for average, current in zip(averages, currents, strict=True):
                average.copy_(current)
            return
        kept = min(decay, (1 + int(seen)) / (10 + int(seen)))
        torch._foreach_lerp_(averages, currents, 1 - kept)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
