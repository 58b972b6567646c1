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
from kirie.data.listed import is_own
from kirie.data.sampling import Sampling, SamplingSettings, class_counts, foreground_of
from kirie.errors import KirieError, counted
from kirie.files import write_text
from kirie.models import model_class
from kirie.models.contract import InputFacts, SegmentationModel
from kirie.models.parts.semantic import SemanticModel
from kirie.progress import say
from kirie.recipe import Recipe, build_model, own_callable, parse_recipe, read_recipe, recipe_values, write_recipe
from kirie.recipe_sections import TrainRecipe, augment_settings
from kirie.recipe_zoo import recipe_file
from kirie.training.checkpoint import FILE
from kirie.training.device import accelerator
from kirie.training.optimise import optimiser
from kirie.training.run import MODEL, RECIPE
from kirie.training.stop import StopSignal
from kirie.training.trainer import LoopSettings, Trainer
from kirie.training.whole import PaddedLoader, ScaledSamples

# What learns from nothing in minutes on a CPU, by what the labels are.
SMALL = {
    "semantic": {"name": "unet", "arguments": {"width": 16, "bias": False}},
    "instance": {"name": "yolact", "arguments": {"encoder": "resnet18", "channels": 64, "shown_threshold": 0.4}},
    "panoptic": {
        "name": "panoptic_fpn",
        "arguments": {
            "encoder": "resnet18", "channels": 64, "norm": True, "anchor_sizes": [16, 32, 64, 128, 256],
            "box_width": 256, "mask_convs": 2, "mask_width": 64, "regions": 128, "width": 64, "stuff_area": 256,
        },
    },
}  # fmt: skip


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
    data: str | Path | Recipe | Dataset,
    *,
    model: str | None = None,
    changes: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    dataset: Dataset | None = None,
    trainer: type[Trainer] = Trainer,
) -> Run:
    """Trains a model and returns its run; the same road as `kirie train`.

    Args:
        data: a recipe, its YAML file, its name in `recipe_zoo.RECIPES`, or a data set: one that is open, its folder,
            the file of a COCO or YOLO one, or your own `package.module:function`. A data set is trained by the
            defaults, and unless `model` or `changes` say otherwise with a model small enough for a CPU, as its labels
            are: see `SMALL`.
        model: a row of `MODELS` to use in place of the recipe's.
        changes: entries of the recipe to set, such as "train.epochs=40".
        out: the run's folder. When not given `runs/DATA`, by the name of the data's folder, and `runs/DATA-MODEL` for
            a recipe, of which there may be several for the same data.
        resume: go on where the run in that folder stopped, exactly as if it had not.
        device: "auto", "cpu", "cuda"...
        dataset: an open data set, in place of the one that the recipe names.
        trainer: a class of your own that derives from `Trainer`.

    Raises:
        KirieError: when recipe or data are at fault, the folder holds another run, or the loss stops being a number.
    """
    if not isinstance(data, str | Path | Recipe):
        dataset, whole = data, True
        data = type(dataset).__name__
    else:
        whole = not isinstance(data, Recipe) and (is_own(data) or is_dataset(data))
        # The record says where the data came from, and a recipe's own path would not be true.
        changes = changes if dataset is None else (*changes, f"data.path={type(dataset).__name__}")
    if whole:
        recipe = _usual_recipe(str(data), model, changes, dataset)
    elif isinstance(data, Recipe):
        recipe = parse_recipe(recipe_values(data), _with_model(model, changes))
    else:
        recipe = read_recipe(recipe_file(data), _with_model(model, changes))
    folder = Path(out) if out is not None else _usual_folder(recipe, with_model=not whole)
    return fit(recipe, folder, resume=resume, device=device, dataset=dataset, trainer=trainer)


def _usual_recipe(path: str, model: str | None, changes: Sequence[str], dataset: Dataset | None) -> Recipe:
    """The recipe for a data set that comes without one."""
    values: dict[str, Any] = {"data": {"path": path}}
    every = _with_model(model, changes)
    recipe = parse_recipe(values, every)
    if model in (None, "unet") and not any(change.startswith("model.") for change in changes):
        values["model"] = SMALL["semantic" if model else _natural_task(recipe, dataset)]
        recipe = parse_recipe(values, every)
    return recipe


def _with_model(model: str | None, changes: Sequence[str]) -> Sequence[str]:
    return changes if model is None else (f"model.name={model}", *changes)


def _natural_task(recipe: Recipe, dataset: Dataset | None) -> str:
    """The task that the labels of the data serve, unless a recipe names one; said where that is not semantic."""
    data = recipe.data
    task = data.task or (dataset or _opened(recipe, None)).task
    told = {"instance": "single objects", "panoptic": "things and stuff"}
    if task in told and data.task is None:
        say(f"{data.path}: the labels tell {told[task]}; --model unet would learn classes of pixels instead")
    return task if task in SMALL else "semantic"


def _opened(recipe: Recipe, split: str | None, task: str | None = None) -> Dataset:
    """The data set that a recipe names, for a task or for the one that its labels serve."""
    data = recipe.data
    return open_dataset(data.path, split, task=task, settings=data.folder_settings())


def _usual_folder(recipe: Recipe, *, with_model: bool) -> Path:
    place = recipe.data.path
    path = Path(os.path.abspath(place.rpartition(":")[2] if is_own(place) else place))
    data = (path.stem if path.is_file() else path.name) or "run"
    return Path("runs") / (f"{data}-{recipe.model.name.rpartition(':')[2]}" if with_model else data)


def fit(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    dataset: Dataset | None = None,
    trainer: type[Trainer] = Trainer,
) -> Run:
    """Trains by a recipe into a folder. See `train`."""
    _claim(folder, recipe, resume)
    return _run(_trainer(recipe, folder, device, resume, dataset, trainer), recipe, resume=resume)


def _run(trainer: Trainer, recipe: Recipe, *, resume: bool) -> Run:
    """The training itself, from its first step or from where it stopped."""
    folder = trainer.folder
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


def _trainer(
    recipe: Recipe, folder: Path, device: str, resume: bool, dataset: Dataset | None, kind: type[Trainer]
) -> Trainer:
    """The parts that a recipe names, put together."""
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
    training = _opened(recipe, data.train, learned) if dataset is None else dataset.only(data.train)
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
