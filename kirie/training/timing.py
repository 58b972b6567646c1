"""How long a recipe takes on this machine, by trying it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from kirie.data.dataset import Dataset
from kirie.planning.plan import Pace
from kirie.prediction.evaluate import measure
from kirie.prediction.predictor import Predictor
from kirie.progress import say
from kirie.recipe import Recipe
from kirie.training.parts import trainer_of

WARM_UP, STEPS = 3, 8
PICTURES = 6


def pace_of(recipe: Recipe, pictures: int, *, device: str = "auto", dataset: Dataset | None = None) -> Pace:
    """The pace of a recipe: some steps are trained and some pictures measured, and then forgotten.

    Args:
        recipe: what to try.
        pictures: in its training split.
        device: "auto", "cpu", "cuda"...
        dataset: an open data set, in place of the one that the recipe names.

    Raises:
        KirieError: as a training would.
    """
    begun = time.perf_counter()
    rows = recipe.train.batch_size * (WARM_UP + STEPS)
    with tempfile.TemporaryDirectory() as folder:
        # Of few pictures, one pass is shorter than what is timed.
        many = replace(recipe.train, draws=max(recipe.train.draws, -(-rows // pictures)), epochs=1)
        say(f"timing {recipe.model.name} on this machine")
        trainer = trainer_of(replace(recipe, train=many), Path(folder), device=device, dataset=dataset)
        start = time.perf_counter() - begun  # with the classes counted, where sampling needs that and no cache has them
        step = float(np.median(trainer.timed_steps(WARM_UP + STEPS)[WARM_UP:]))
        predictor = Predictor(trainer.model, device=str(trainer.accelerator.device))
        parts = max(1, len(trainer.validation) // PICTURES)
        measured = len(trainer.validation) // parts
        measure(predictor, trainer.validation, share=(0, len(trainer.validation)))  # the first is slow
        before = time.perf_counter()
        measure(predictor, trainer.validation, share=(parts // 2, parts))
        return Pace(start, step, (time.perf_counter() - before) / max(1, measured))
