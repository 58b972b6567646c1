"""The verb `train`: from a recipe to the parts of a training, and into a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kirie.data import is_dataset
from kirie.data.dataset import Dataset
from kirie.data.listed import is_own
from kirie.errors import KirieError
from kirie.files import write_text
from kirie.progress import say
from kirie.recipe import Recipe, parse_recipe, read_recipe, recipe_values, write_recipe
from kirie.recipe_zoo import recipe_file
from kirie.training.checkpoint import FILE
from kirie.training.parts import trainer_of
from kirie.training.planned import MINUTES, plan
from kirie.training.run import MODEL, PLAN, RECIPE
from kirie.training.stop import StopSignal
from kirie.training.trainer import Trainer


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
    minutes: float = MINUTES,
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
            the file of a COCO or YOLO one, or your own `package.module:function`. For a data set a recipe is
            planned first, as `plan` does it, told, and kept in the run's folder as `plan.yaml` with its reasons.
        minutes: of a data set, how long the training may take.
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
    reasons = ""
    if whole:
        folder = Path(out) if out is not None else usual_folder(str(data))
        if resume:  # the steps of another time would be planned otherwise
            recipe = read_recipe(_own_recipe(folder), with_model(model, (f"data.path={data}", *changes)))
        else:
            claim_new(folder)  # before time is spent on planning
            planned = plan(str(data), minutes=minutes, model=model, changes=changes, device=device, dataset=dataset)
            recipe, reasons = planned.recipe, planned.text()
            say(reasons.rstrip())
    else:
        recipe = recipe_of(data, with_model(model, changes))
        folder = Path(out) if out is not None else usual_folder(recipe.data.path, recipe.model.name)
    return fit(recipe, folder, resume=resume, device=device, dataset=dataset, trainer=trainer, reasons=reasons)


def recipe_of(recipe: str | Path | Recipe, changes: Sequence[str]) -> Recipe:
    """A recipe, or that of a file or a name, with the changes made to it."""
    if isinstance(recipe, Recipe):
        return parse_recipe(recipe_values(recipe), changes)
    return read_recipe(recipe_file(recipe), changes)


def with_model(model: str | None, changes: Sequence[str]) -> Sequence[str]:
    """The changes to a recipe, with that of the model where one is named."""
    return changes if model is None else (f"model.name={model}", *changes)


def _own_recipe(folder: Path) -> Path:
    if not (folder / FILE).exists():
        raise KirieError(f"There is nothing to resume in {folder}: it has no {FILE}.")
    return folder / RECIPE


def usual_folder(place: str, model: str = "") -> Path:
    """Where a run of some data goes when nobody says it, with the model's name where one is given."""
    path = Path(os.path.abspath(place.rpartition(":")[2] if is_own(place) else place))
    data = (path.stem if path.is_file() else path.name) or "run"
    return Path("runs") / (f"{data}-{model.rpartition(':')[2]}" if model else data)


def fit(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    dataset: Dataset | None = None,
    trainer: type[Trainer] = Trainer,
    reasons: str = "",
) -> Run:
    """Trains by a recipe into a folder, where `reasons` are written as `plan.yaml`. See `train`."""
    _claim(folder, recipe, resume)
    made = trainer_of(recipe, folder, device=device, resume=resume, dataset=dataset, kind=trainer)
    return _run(made, recipe, reasons, resume=resume)


def _run(trainer: Trainer, recipe: Recipe, reasons: str, *, resume: bool) -> Run:
    """The training itself, from its first step or from where it stopped."""
    folder = trainer.folder
    trainer.accelerator.wait_for_everyone()  # of several processes, until all have claimed the folder
    try:
        if resume:
            trainer.restore()
        elif trainer.leader:
            write_text(folder / RECIPE, write_recipe(recipe))
            if reasons:
                write_text(folder / PLAN, reasons)
            trainer.save_state()  # so that there is something to resume from the first step on
        with StopSignal() as stop:
            finished = trainer.run(stop)
        trainer.accelerator.wait_for_everyone()  # whoever leaves first takes the connections of the others along
    except BaseException:
        if not resume and trainer.leader and trainer.standing.step == 0:
            # Nothing was learned: leave the folder to another try with a mended recipe.
            with suppress(OSError):
                (folder / RECIPE).unlink(missing_ok=True)
                (folder / PLAN).unlink(missing_ok=True)
                (folder / FILE).unlink(missing_ok=True)
        raise
    finally:
        trainer.loader.close()
    best, standing = folder / MODEL, trainer.standing
    return Run(folder, best if best.exists() else None, standing.best, tuple(standing.history), finished)


def _claim(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Makes sure that a run may write into its folder: never over another run, and only over its own when resuming."""
    if not resume:
        claim_new(folder)
        return
    _check_folder(folder)
    _own_recipe(folder)
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


def claim_new(folder: Path) -> None:
    """Raises a KirieError unless a new run may write into a folder."""
    _check_folder(folder)
    if (folder / FILE).exists():
        raise KirieError(f"{folder} holds a run already: go on with it by --resume, or choose another place by --out.")
    for name in (RECIPE, MODEL):
        if (folder / name).exists():
            raise KirieError(f"{folder} holds a {name}, which a run would replace: choose another place by --out.")


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise KirieError(f"{folder} is a file; a run needs a folder of its own.")
