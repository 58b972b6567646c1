"""The verb `plan`: from a data set to a recipe that fits it, this machine and the time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kirie.data import open_dataset
from kirie.data.dataset import Dataset
from kirie.data.layouts import FolderSettings
from kirie.data.splits import canonical
from kirie.errors import KirieError
from kirie.models import model_class
from kirie.models.device import pick_device
from kirie.planning.case import FIRST, Case
from kirie.planning.facts import data_facts
from kirie.planning.machine import this_machine
from kirie.planning.plan import Plan, make_plan
from kirie.recipe import parse_recipe
from kirie.training.timing import pace_of

MINUTES = 30.0


def plan(
    data: str | Path | Dataset,
    *,
    minutes: float = MINUTES,
    task: str | None = None,
    model: str | None = None,
    changes: Sequence[str] = (),
    device: str = "auto",
    dataset: Dataset | None = None,
) -> Plan:
    """Looks at a data set and at this machine, and plans a training; the same road as `kirie plan`.

    Args:
        data: a data set: one that is open, its folder, the file of a COCO or YOLO one, or your own
            `package.module:function`.
        minutes: how long the training may take.
        task: "semantic", "instance" or "panoptic"; None for that of the model, or else the one that the labels serve.
        model: a row of `MODELS`; None for one that learns from random weights in so little time.
        changes: entries of the recipe that are given, such as "train.epochs=40".
        device: "auto", "cpu", "cuda"...
        dataset: an open data set, in place of `data`, which then only names it.

    Raises:
        KirieError: when the data cannot be read or have nothing to learn from or to measure on, or the entries that
            are given do not fit.
    """
    if device != "auto":
        pick_device(device)
    if isinstance(data, str | Path):
        path = str(data)
    else:
        path, dataset = type(data).__name__, data
    asked = {change.partition("=")[0].strip() for change in changes}
    if model is not None:
        changes, asked = (f"model.name={model}", *changes), asked | {"model.name"}
    if task is not None:
        changes = (f"data.task={task}", *changes)
    if "train.epochs" not in asked and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise KirieError(
            "Several processes would each plan a training of their own: plan it once by `kirie plan DATA --out "
            "recipe.yaml`, and start them with that recipe."
        )
    base = parse_recipe({"data": {"path": path}}, changes)
    learned = model_class(base.model.name, own_code=True).task if "model.name" in asked else base.data.task
    labels = dataset if dataset is not None else _as_labelled(path, base.data.folder_settings())
    chosen = learned or labels.task
    if base.data.task not in (None, chosen):
        raise KirieError(f"data.task is {base.data.task}, but {base.model.name} learns {chosen} truth: leave it out.")
    as_learned = labels
    if dataset is None and chosen != labels.task:
        as_learned = _as_labelled(path, base.data.folder_settings(), chosen)
    training, measured = labels.only(base.data.train), len(labels.only(base.data.val))
    try:
        facts = data_facts(training, measured)
    except KirieError:
        if as_learned is labels:
            raise
        # Labels that cannot be read for all that their format serves may serve the task alone.
        facts = data_facts(as_learned.only(base.data.train), measured)
    case = Case(
        task=chosen,
        model=base.model.name if "model.name" in asked else FIRST[chosen],
        facts=facts,
        machine=this_machine(device),
        own_split=canonical(base.data.val) in labels.splits,
    )
    return make_plan(
        case, path, minutes=minutes, pace_of=partial(pace_of, device=device, dataset=dataset), changes=changes
    )


def _as_labelled(path: str, settings: FolderSettings, task: str | None = None) -> Dataset:
    """The data set at its own size, for what its labels serve or for one task."""
    return open_dataset(path, task=task, settings=replace(settings, short_side=None, gap=0))
