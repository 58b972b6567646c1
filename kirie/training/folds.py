"""k-fold training: k models, each measured on the part of the pictures that it has not seen, and their spread."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kirie.data import is_dataset
from kirie.data.listed import is_own
from kirie.errors import KirieError
from kirie.files import write_text
from kirie.models.file import read_card
from kirie.progress import say
from kirie.recipe import Recipe, parse_recipe, read_recipe, recipe_values
from kirie.training.checkpoint import FILE
from kirie.training.fit import Run, claim_new, fit, recipe_of, usual_folder, with_model
from kirie.training.planned import MINUTES, plan
from kirie.training.run import MODEL, RECIPE

MOST_FOLDS = 100


@dataclass(frozen=True)
class Folds:
    """A k-fold training.

    Attributes:
        folder: with `fold-1` to `fold-k`, which together are an ensemble, and `folds.csv` and `folds.json`.
        runs: of the folds that were begun, in order.
        k: how many there are to be.
        scores: of each finished fold the numbers measured on its part, by name.
    """

    folder: Path
    runs: tuple[Run, ...]
    k: int
    scores: tuple[Mapping[str, float], ...]

    @property
    def finished(self) -> bool:
        """Whether all folds are."""
        return len(self.runs) == self.k and all(run.finished for run in self.runs)

    def spread(self) -> dict[str, tuple[float, float]]:
        """Of each number that all finished folds have, the mean and the standard deviation (of a sample, n - 1)."""
        names = [name for name in self.scores[0] if all(name in row for row in self.scores)] if self.scores else []
        table = {name: np.array([row[name] for row in self.scores]) for name in names}
        return {name: (float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else math.nan) for name, v in table.items()}


def train_folds(
    data: str | Path | Recipe,
    folds: int,
    *,
    minutes: float = MINUTES,
    model: str | None = None,
    changes: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Folds:
    """Trains k models, each without another part of the pictures of `train` and `val`, on which it is then measured.

    Args:
        data: a recipe, its file or name, or a data set, for which a recipe is planned first.
        folds: k, from 2 to 100.
        minutes: of a data set, how long all of it may take.
        model: a row of `MODELS` to use in place of the recipe's.
        changes: entries of the recipe to set.
        out: the folder for all folds; when not given, `runs/DATA-folds`.
        resume: go on where it stopped: with the fold under way, or the next one.
        device: "auto", "cpu", "cuda"...

    Raises:
        KirieError: when k is out of range, or as `train` does.
    """
    if not 2 <= folds <= MOST_FOLDS:
        raise KirieError(f"A k-fold training has 2 to {MOST_FOLDS} folds, got {folds}.")
    if isinstance(data, str | Path) and is_own(data):
        raise KirieError(f"k-fold training divides the pictures of a folder; {data} is code, which divides its own.")
    every = with_model(model, changes)
    folder = Path(out) if out is not None else None
    reasons = ""
    first = (f"data.fold=[1, {folds}]",)
    if isinstance(data, Recipe) or not is_dataset(data):
        recipe = recipe_of(data, [*every, *first])
    else:
        folder = folder or Path(f"{usual_folder(str(data))}-folds")
        begun = folder / "fold-1" / RECIPE
        if resume and begun.exists():
            recipe = read_recipe(begun, [f"data.path={data}", *every, *first])
        else:
            for number in range(1, folds + 1):
                if not resume:
                    claim_new(folder / f"fold-{number}")  # before the time that a plan takes
            planned = plan(data, minutes=minutes / folds, model=model, changes=[*changes, *first], device=device)
            recipe, reasons = planned.recipe, planned.text()
            say(reasons.rstrip())
    folder = folder or Path(f"{usual_folder(recipe.data.path, recipe.model.name)}-folds")
    runs: list[Run] = []
    for number in range(1, folds + 1):
        place = folder / f"fold-{number}"
        going_on = resume and (place / FILE).exists()
        say(f"fold {number} of {folds}")
        own = parse_recipe(recipe_values(recipe), [f"data.fold=[{number}, {folds}]"])
        runs.append(fit(own, place, resume=going_on, device=device, reasons=reasons))
        if not runs[-1].finished:
            break
    done = Folds(folder, tuple(runs), folds, tuple(_numbers(run) for run in runs if run.finished and run.model))
    if done.finished:
        _write(done)
    return done


def _numbers(run: Run) -> dict[str, float]:
    """What the kept model of a run was measured at."""
    return {name.removeprefix("val_"): value for name, value in read_card(run.folder / MODEL).scores.items()}


def _write(done: Folds) -> None:
    spread = done.spread()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["fold", *spread])
    for number, row in enumerate(done.scores, 1):
        writer.writerow([number, *(f"{row[name]:.6g}" for name in spread)])
    writer.writerow(["mean", *(f"{mean:.6g}" for mean, _ in spread.values())])
    writer.writerow(["standard deviation", *(f"{deviation:.6g}" for _, deviation in spread.values())])
    write_text(done.folder / "folds.csv", text.getvalue())
    facts: dict[str, Any] = {
        "folds": [dict(row) for row in done.scores],
        "mean": {name: mean for name, (mean, _) in spread.items()},
        "standard_deviation": {name: deviation for name, (_, deviation) in spread.items()},
    }
    write_text(done.folder / "folds.json", json.dumps(facts, indent=2) + "\n")
