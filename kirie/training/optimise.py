"""Optimisers, the learning rate over the steps, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Schedule = Callable[[int], float]


def optimiser(
    model: nn.Module,
    name: str,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool = True,
    decay_biases: bool = False,
    layer_decay: float = 1.0,
    levels: Sequence[Sequence[nn.Module]] = (),
) -> Any:
    """AdamW or SGD over the model's trainable parameters; norms are not decayed, and biases only when asked for.

    Each parameter group has, beside its rate `lr`, the factor `scale` by which that differs from `learning_rate`.

    Args:
        model: what to train.
        name: "adamw" or "sgd".
        learning_rate: at its highest.
        weight_decay: of tensors with two or more axes.
        momentum: of SGD.
        nesterov: whether SGD looks ahead by its momentum.
        decay_biases: whether biases of convolutions and linear layers are decayed too.
        layer_decay: above 0, at most 1. Level i of n learns at learning_rate * layer_decay ** (n - 1 - i), so that the
            last, the head, has the whole rate (as BEiT and MAE are fine-tuned, after ELECTRA).
        levels: parts of the model from the picture's side to the head; see `SegmentationModel.levels`.
    """
    groups: list[dict[str, Any]] = []
    biases = _biases(model) if decay_biases else set()
    for scale, learned in _scaled(model, layer_decay, () if layer_decay == 1 else levels):
        common = {"lr": learning_rate * scale, "scale": scale}
        groups += [
            {"params": [p for p in learned if p.ndim > 1 or id(p) in biases], "weight_decay": weight_decay, **common},
            {"params": [p for p in learned if p.ndim <= 1 and id(p) not in biases], "weight_decay": 0.0, **common},
        ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov and momentum > 0)


def _biases(model: nn.Module) -> set[int]:
    """The identities of the biases of convolutions and linear layers."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    return {id(m.bias) for m in model.modules() if isinstance(m, layers) and m.bias is not None}


def set_rate(optimiser: Any, learning_rate: float) -> None:
    """Gives every group of an optimiser its share of a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate * group.get("scale", 1.0)


def _scaled(
    model: nn.Module, decay: float, levels: Sequence[Sequence[nn.Module]]
) -> list[tuple[float, list[nn.Parameter]]]:
    """For each level, the head's first, its factor of the learning rate and its trainable parameters in their order."""
    last = max(len(levels) - 1, 0)
    level_of = {id(p): i for i, parts in enumerate(levels) for part in parts for p in part.parameters()}
    members: list[list[nn.Parameter]] = [[] for _ in range(last + 1)]
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[level_of.get(id(parameter), last)].append(parameter)
    return [(decay ** (last - i), members[i]) for i in range(last, -1, -1)]


def schedule(name: str, *, steps: int, warmup: float, milestones: Sequence[float] = (), gamma: float = 0.1) -> Schedule:
    """The learning rate's factor in [0, 1] for a step in 0..steps-1.

    Args:
        name: "cosine" (to 0), "poly" (power 0.9, to 0), "step" (times `gamma` at each milestone) or "constant".
        steps: of the whole training.
        warmup: share of the steps during which the factor rises to 1 in a straight line.
        milestones: shares of the steps, the warm-up's included.
        gamma: what the factor is multiplied by.
    """
    rise = round(steps * warmup)
    stones = [round(steps * share) for share in milestones]

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        if name == "step":
            return float(gamma ** sum(step >= stone for stone in stones))
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
