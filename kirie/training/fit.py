"""The verb `train`: from a recipe to the parts of a training, and into a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kirie.classes import Classes
from kirie.criterion import USUAL_LOSS, build_loss
from kirie.data import is_dataset, open_dataset
from kirie.data.batch import AugmentedSamples, BatchPlan, TrainingLoader
from kirie.data.dataset import Dataset
from kirie.errors import KirieError, counted
from kirie.files import write_text
from kirie.models import model_class
from kirie.models.contract import InputFacts
from kirie.models.parts.semantic import SemanticModel
from kirie.progress import say
from kirie.recipe import (
    Recipe,
    TrainRecipe,
    augment_settings,
    build_model,
    own_callable,
    parse_recipe,
    read_recipe,
    recipe_values,
    write_recipe,
)
from kirie.training.checkpoint import FILE
from kirie.training.device import accelerator
from kirie.training.optimise import optimiser
from kirie.training.run import MODEL, RECIPE
from kirie.training.stop import StopSignal
from kirie.training.trainer import LoopSettings, Trainer

# What learns from nothing in minutes on a CPU, by what the labels are.
SMALL = {
    "semantic": {"name": "unet", "arguments": {"width": 16, "bias": False}},
    "instance": {"name": "yolact", "arguments": {"encoder": "resnet18", "channels": 64, "shown_threshold": 0.4}},
}


@dataclass(frozen=True)
class Run:
    """A finished or stopped training.

    Attributes:
        folder: where everything lies.
        model: the file with the best weights so far (the latest while none has a score), or None before the first
            measurement.
        best: the best score, or None.
        history: one row of numbers per finished epoch.
        finished: False when it was stopped and can be resumed.
    """

    folder: Path
    model: Path | None
    best: float | None
    history: tuple[Mapping[str, float], ...]
    finished: bool


def train(
    data: str | Path | Recipe,
    *,
    model: str | None = None,
    changes: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Run:
    """Trains a model and returns its run; the same road as `kirie train`.

    Args:
        data: a recipe, its YAML file, or a data set: its folder, or the file of a COCO or YOLO one. A data set is
            trained by the defaults, and unless `model` or `changes` say otherwise with a model small enough for a
            CPU: a U-Net, or a YOLACT where the labels tell single objects.
        model: a row of `MODELS` to use in place of the recipe's.
        changes: entries of the recipe to set, such as "train.epochs=40".
        out: the run's folder. When not given `runs/DATA`, by the name of the data's folder, and `runs/DATA-MODEL` for
            a recipe, of which there may be several for the same data.
        resume: go on where the run in that folder stopped, exactly as if it had not.
        device: "auto", "cpu", "cuda"...

    Raises:
        KirieError: when recipe or data are at fault, the folder holds another run, or the loss stops being a number.
    """
    own_model = model not in (None, "unet") or any(change.startswith("model.") for change in changes)
    if model is not None:
        changes = (f"model.name={model}", *changes)
    whole = not isinstance(data, Recipe) and is_dataset(data)
    if isinstance(data, Recipe):
        recipe = parse_recipe(recipe_values(data), changes)
    elif whole:
        values: dict[str, Any] = {"data": {"path": str(data)}}
        recipe = parse_recipe(values, changes)
        if not own_model:
            values["model"] = SMALL["semantic" if model else _natural_task(recipe)]
            recipe = parse_recipe(values, changes)
    else:
        recipe = read_recipe(data, changes)
    folder = Path(out) if out is not None else _usual_folder(recipe, with_model=not whole)
    return fit(recipe, folder, resume=resume, device=device)


def _natural_task(recipe: Recipe) -> str:
    """The task that the labels of a recipe's data serve, unless it names one; said where that is not semantic."""
    data = recipe.data
    task = data.task or open_dataset(data.path, settings=data.folder_settings()).task
    if task == "instance" and data.task is None:
        say(f"{data.path}: the labels tell single objects; --model unet would learn classes of pixels instead")
    return task if task in SMALL else "semantic"


def _usual_folder(recipe: Recipe, *, with_model: bool) -> Path:
    path = Path(os.path.abspath(recipe.data.path))
    data = (path.stem if path.is_file() else path.name) or "run"
    return Path("runs") / (f"{data}-{recipe.model.name.rpartition(':')[2]}" if with_model else data)


def fit(recipe: Recipe, folder: Path, *, resume: bool = False, device: str = "auto") -> Run:
    """Trains by a recipe into a folder. See `train`."""
    _claim(folder, recipe, resume)
    trainer = _trainer(recipe, folder, device, resume)
    trainer.accelerator.wait_for_everyone()  # of several processes, until all have claimed the folder
    try:
        if resume:
            trainer.restore()
        elif trainer.leader:
            write_text(folder / RECIPE, write_recipe(recipe))
            trainer.save_state()  # so that there is something to resume from the first step on
        with StopSignal() as stop:
            finished = trainer.run(stop)
        trainer.accelerator.wait_for_everyone()  # whoever leaves first takes the connections of the others along
    except BaseException:
        if not resume and trainer.leader and trainer.standing.step == 0:
            # Nothing was learned: leave the folder to another try with a mended recipe.
            with suppress(OSError):
                (folder / RECIPE).unlink(missing_ok=True)
                (folder / FILE).unlink(missing_ok=True)
        raise
    finally:
        trainer.loader.close()
    best, standing = folder / MODEL, trainer.standing
    return Run(folder, best if best.exists() else None, standing.best, tuple(standing.history), finished)


def _claim(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Makes sure that a run may write into its folder: never over another run, and only over its own when resuming."""
    has_state = (folder / FILE).exists()
    if folder.exists() and not folder.is_dir():
        raise KirieError(f"{folder} is a file; a run needs a folder of its own.")
    if resume and not has_state:
        raise KirieError(f"There is nothing to resume in {folder}: it has no {FILE}.")
    if not resume:
        if has_state:
            raise KirieError(
                f"{folder} holds a run already: go on with it by --resume, or choose another place by --out."
            )
        for name in (RECIPE, MODEL):
            if (folder / name).exists():
                raise KirieError(f"{folder} holds a {name}, which a run would replace: choose another place by --out.")
        return
    before, now = recipe_values(read_recipe(folder / RECIPE)), recipe_values(recipe)
    differing = [
        f"{section}.{name}"
        for section, entries in now.items()
        for name, value in entries.items()
        # More workers read the same batches, so they may change; all else would make it another training.
        if before.get(section, {}).get(name) != value and (section, name) != ("train", "workers")
    ]
    if differing:
        raise KirieError(
            f"{folder} was trained by another recipe: {', '.join(differing[:6])} differ. "
            f"Resume with its own recipe, {folder / RECIPE}, or start a new run by --out."
        )


def _trainer(recipe: Recipe, folder: Path, device: str, resume: bool) -> Trainer:
    """The parts that a recipe names, put together."""
    settings = recipe.train
    handle = accelerator(device, settings.precision)
    torch.manual_seed(settings.seed)
    training, validation = _datasets(recipe)
    start = recipe.model
    if resume:  # it has weights of its own
        elsewhere = model_class(start.name, own_code=True).never_from_file
        own = {name: value for name, value in start.arguments.items() if name not in elsewhere}
        start = replace(start, start=None, arguments=own)
    model = build_model(start, training.classes, recipe.data.channels)
    model.inputs = InputFacts(recipe.data.short_side, settings.patch)
    if isinstance(model, SemanticModel):
        factors = _class_weights(settings, training, model.classes)
        model.criterion = build_loss(
            USUAL_LOSS if settings.loss is None else settings.loss, void=model.classes.void, weight=factors
        )
    elif settings.loss is not None or settings.class_weights is not None:
        raise KirieError(
            f"train.loss and train.class_weights are for semantic models; {start.name} has losses of its own: leave "
            "both out."
        )
    if settings.layer_decay != 1 and len(model.levels()) == 1:
        raise KirieError(
            f"train.layer_decay is {settings.layer_decay}, but this {recipe.model.name} has no levels to tell apart: "
            "leave it out, or give the model an encoder."
        )
    rule = optimiser(
        model,
        settings.optimiser,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        layer_decay=settings.layer_decay,
        levels=model.levels(),
    )
    return Trainer(
        model,
        rule,
        _loader(recipe, training, handle),
        validation,
        LoopSettings(**{f.name: getattr(settings, f.name) for f in fields(LoopSettings)}),
        accelerator=handle,
        folder=folder,
        record=recipe_values(recipe),
    )


def _datasets(recipe: Recipe) -> tuple[Dataset, Dataset]:
    """What to learn from and what to measure on."""
    data, learned = recipe.data, model_class(recipe.model.name, own_code=True).task
    if data.task not in (None, learned):
        raise KirieError(f"data.task is {data.task}, but {recipe.model.name} learns {learned} truth: leave it out.")
    training = open_dataset(data.path, data.train, task=learned, settings=data.folder_settings())
    if training.unfound:
        shown = ", ".join(training.unfound[:3])
        what = counted(len(training.unfound), "picture")
        say(f"{data.path}: lists name {what} without a file, such as {shown}; left out. `kirie inspect` tells more.")
    for words in training.left_out:
        say(words)
    # As `evaluate` does: measured at the pictures' own size, whatever size the model sees them at.
    validation = training.only(data.val, own_size=True)
    for split, dataset in ((data.train, training), (data.val, validation)):
        if len(dataset) == 0:
            raise KirieError(f"{data.path} has no pictures in its {split!r} split.")
    return training, validation


def _loader(recipe: Recipe, dataset: Dataset, handle: Accelerator) -> TrainingLoader:
    settings = recipe.train
    samples = AugmentedSamples(
        dataset, augment_settings(recipe.augment), settings.patch, settings.seed, own_callable(recipe.augment)
    )
    plan = BatchPlan(len(dataset), settings.batch_size, settings.draws, settings.seed)
    workers = _free_cores() if settings.workers is None else settings.workers
    share = (handle.process_index, handle.num_processes)
    return TrainingLoader(samples, plan, workers=workers, share=share, pin=handle.device.type == "cuda")


def _free_cores() -> int:
    """So many cores read ahead: all but one, which the training itself keeps busy, and at most four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores - 1)


def _class_weights(settings: TrainRecipe, dataset: Dataset, classes: Classes) -> Sequence[float] | None:
    """One factor per class, or None for equal ones."""
    weights = settings.class_weights
    if weights == "balanced":
        return balanced_weights(dataset, classes)
    if weights is not None and len(weights) != len(classes):
        raise KirieError(
            f"train.class_weights has {len(weights)} values for the {len(classes)} classes {', '.join(classes.names)}."
        )
    return weights


def balanced_weights(dataset: Dataset, classes: Classes, *, most: int = 200) -> list[float]:
    """Class weights by the inverse square root of each class's pixel share, with mean 1.

    Args:
        dataset: whose truths are counted.
        classes: its K classes.
        most: so many pictures, spread evenly, are read at most.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int))
    pixels = np.zeros(classes.void + 1, np.int64)
    for index in chosen:
        labels: Any = dataset[int(index)].truth
        pixels += np.bincount(labels.labels.ravel(), minlength=len(pixels))
    share = pixels[: len(classes)] / max(pixels[: len(classes)].sum(), 1)
    inverse = 1 / np.sqrt(np.maximum(share, 1e-4))
    return [float(w) for w in inverse / inverse.mean()]
