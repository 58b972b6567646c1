"""The state of a training between two steps, in one safetensors file without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kirie.errors import KirieError
from kirie.files import remove_stand_ins, whole_file

FILE = "last/state.safetensors"


@dataclass
class Standing:
    """How far a training has come.

    Attributes:
        epoch: the epoch to go on in, counted from 0.
        batch: batches of that epoch already done.
        step: optimiser steps done in all.
        best: the best score so far, None before the first measurement.
        stale: measurements since then.
        finished: whether it stopped early, for want of better scores.
        history: one row of numbers per finished epoch.
        sums: sums of each loss over the batches of the epoch under way.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    stale: int = 0
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)


def save_state(
    folder: Path,
    standing: Standing,
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimiser: Any,
    extra: Mapping[str, Any],
) -> None:
    """Writes everything a run needs to go on exactly as if it had not stopped.

    A kill at any moment leaves either the former state or this one, whole.

    Args:
        folder: the run's folder.
        standing: how far it has come.
        tensors: groups of tensors by name ("model", "average").
        optimiser: whose state is written.
        extra: plain JSON values to keep beside it, such as the scale of half-precision gradients.

    Raises:
        KirieError: when it cannot be written; the former state stays.
    """
    flat = {f"{group}/{name}": t for group, members in tensors.items() for name, t in members.items()}
    state = optimiser.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                flat[f"optimiser/{index}/{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    flat["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        flat["random/cuda"] = torch.cuda.get_rng_state()
    facts = {"progress": asdict(standing), "groups": state["param_groups"], "scalars": scalars, "extra": dict(extra)}
    kept = {name: t.detach().cpu().contiguous().clone() for name, t in flat.items()}
    with whole_file(folder / FILE) as stand_in:
        try:
            save_file(kept, stand_in, metadata={"state": json.dumps(facts)})
        except SafetensorError as error:
            raise OSError(None, str(error)) from error


def load_state(folder: Path, optimiser: Any) -> tuple[Standing, dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_state` wrote: how far it has come, the groups of tensors, the extra values.

    The optimiser and the random state are filled as well.

    Raises:
        KirieError: when there is no state in the folder, it is damaged, or it is of another optimiser.
    """
    path = folder / FILE
    if not path.is_file():
        raise KirieError(f"There is nothing to resume in {folder}: {FILE} is missing.")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["state"])
            flat = {name: file.get_tensor(name) for name in file.keys()}
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = tensor
        _fill(optimiser, facts, groups.pop("optimiser", {}))
        random = groups.pop("random")
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])
        standing, extra = Standing(**facts["progress"]), dict(facts["extra"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise KirieError(f"{path} is damaged or of another training ({error}); start anew by --out.") from error
    remove_stand_ins(lambda: [path])
    return standing, groups, extra


def _fill(optimiser: Any, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Gives an optimiser its state back, laid out in memory as it was, since rounding may depend on the layout."""
    entries: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in facts["scalars"].items()}
    for name, tensor in tensors.items():
        index, _, entry = name.partition("/")
        entries.setdefault(int(index), {})[entry] = tensor
    optimiser.load_state_dict({"state": entries, "param_groups": facts["groups"]})
    for weight, values in optimiser.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value).detach()
