"""The parts of a training, as a recipe names them: data sets, model, loss, optimiser, batches, and the loop itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kirie.classes import Classes
from kirie.criterion import USUAL_LOSS, build_loss
from kirie.data import open_dataset
from kirie.data.batch import AugmentedSamples, BatchPlan, TrainingLoader
from kirie.data.dataset import Dataset
from kirie.data.sampling import Sampling, SamplingSettings, class_counts, foreground_of
from kirie.errors import KirieError, counted
from kirie.models import model_class
from kirie.models.contract import InputFacts, SegmentationModel
from kirie.models.parts.semantic import SemanticModel
from kirie.progress import say
from kirie.recipe import Recipe, build_model, own_callable, recipe_values
from kirie.recipe_sections import TrainRecipe, augment_settings
from kirie.training.device import accelerator
from kirie.training.optimise import optimiser
from kirie.training.trainer import LoopSettings, Trainer
from kirie.training.whole import PaddedLoader, ScaledSamples


def trainer_of(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    dataset: Dataset | None = None,
    kind: type[Trainer] = Trainer,
) -> Trainer:
    """The parts that a recipe names, put together.

    Args:
        recipe: the recipe.
        folder: of the run.
        device: "auto", "cpu", "cuda"...
        resume: whether weights come from the state of a run, and not from where the recipe starts.
        dataset: an open data set, in place of the one that the recipe names.
        kind: `Trainer`, or a class that derives from it.

    Raises:
        KirieError: when recipe or data are at fault.
    """
    settings = recipe.train
    handle = accelerator(device, settings.precision)
    torch.manual_seed(settings.seed)
    training, validation = _datasets(recipe, dataset)
    start = recipe.model
    if resume:  # it has weights of its own
        elsewhere = model_class(start.name, own_code=True).never_from_file
        own = {name: value for name, value in start.arguments.items() if name not in elsewhere}
        start = replace(start, start=None, arguments=own)
    model = build_model(start, training.classes, recipe.data.channels)
    sides = recipe.augment.short_sides
    model.inputs = InputFacts(max(sides, default=recipe.data.short_side), settings.patch, recipe.augment.long_side)
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
        nesterov=settings.nesterov,
        decay_biases=settings.decay_biases,
        layer_decay=settings.layer_decay,
        levels=model.levels(),
    )
    return kind(
        model,
        rule,
        _loader(recipe, training, handle, model),
        validation,
        LoopSettings(**{f.name: getattr(settings, f.name) for f in fields(LoopSettings)}),
        accelerator=handle,
        folder=folder,
        record=recipe_values(recipe),
    )


def _datasets(recipe: Recipe, dataset: Dataset | None) -> tuple[Dataset, Dataset]:
    """What to learn from and what to measure on."""
    data, learned = recipe.data, model_class(recipe.model.name, own_code=True).task
    if data.task not in (None, learned):
        raise KirieError(f"data.task is {data.task}, but {recipe.model.name} learns {learned} truth: leave it out.")
    if dataset is not None and dataset.task != learned:
        raise KirieError(
            f"The data set has truth for task {dataset.task!r}, but {recipe.model.name} learns {learned}: open it for "
            "that task, or name another model."
        )
    training = opened(recipe, data.train, learned) if dataset is None else dataset.only(data.train)
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


def _loader(
    recipe: Recipe, dataset: Dataset, handle: Accelerator, model: SegmentationModel
) -> TrainingLoader | PaddedLoader:
    settings, change = recipe.train, recipe.augment
    given = (dataset, augment_settings(change), settings.patch, settings.seed, own_callable(change))
    samples = (
        ScaledSamples(*given, change.short_sides, change.long_side) if change.short_sides else AugmentedSamples(*given)
    )
    plan = BatchPlan(
        len(dataset), settings.batch_size, settings.draws, settings.seed, _sampling(recipe.sampling, dataset)
    )
    workers = _free_cores() if settings.workers is None else settings.workers
    share = (handle.process_index, handle.num_processes)
    ahead: dict[str, Any] = {"workers": workers, "share": share, "pin": handle.device.type == "cuda"}
    if change.short_sides and settings.patch is None:
        fill = (model.mean.flatten() * 255).round().clamp(0, 255).int().tolist()  # what is 0 to the model
        return PaddedLoader(samples, plan, fill=fill, **ahead)
    return TrainingLoader(samples, plan, **ahead)


def _sampling(settings: SamplingSettings, dataset: Dataset) -> Sampling | None:
    """How the pictures are drawn, with what must be known of them; None where each is drawn alike."""
    if settings == type(settings)():
        return None
    if settings.positive_ratio > 0 and dataset.task == "semantic" and not dataset.classes.has_background:
        raise KirieError(
            f"sampling.positive_ratio needs a class called background, which {', '.join(dataset.classes.names[:6])} do "
            "not have: every pixel is foreground. Leave it out, or take sampling.rare_ratio."
        )
    counts = class_counts(dataset) if settings.needs_counts else np.zeros((len(dataset), 0), np.int64)
    return Sampling(settings, counts, foreground_of(dataset))


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


def opened(recipe: Recipe, split: str | None, task: str | None = None) -> Dataset:
    """The data set that a recipe names, for a task or for the one that its labels serve."""
    data = recipe.data
    return open_dataset(data.path, split, task=task, settings=data.folder_settings())
