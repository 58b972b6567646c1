"""The best threshold and clean-up of a trained semantic model, found on pictures that it has not learned from.

The model runs once. What it is sure of is kept, and the settings are tried on that, one after another, each at the best
of those before it; and once more around what was found. Where objects are counted, specks and holes go first:
a threshold would else be chosen for how few specks it leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.cleanup import CleanupSettings, clean, foreground, objects
from kirie.data.dataset import Dataset
from kirie.data.splits import canonical
from kirie.drawing.curves import figure_png, lines_figure
from kirie.errors import KirieError
from kirie.files import whole_file
from kirie.metrics.boundary import BoundaryMetric
from kirie.metrics.matching import Matching
from kirie.metrics.semantic import SemanticMetric
from kirie.models.file import load, model_path, read_card, save
from kirie.models.parts.region_objects import as_task
from kirie.prediction.evaluate import check_classes, open_for
from kirie.prediction.predictor import Predictor, read_ahead
from kirie.progress import say, tracked
from kirie.results import Instances, SemanticMap

MOST_BYTES = 2**31  # of probabilities that are kept; of more pictures an even choice is taken
SIZES = 12  # pictures whose size tells how many of them can be kept
GAIN = 1e-4  # what a change must bring to be worth it
THREADS = 4  # that score pictures side by side; what they call lets others run meanwhile

VALUES: dict[str, tuple[Any, ...]] = {
    "smallest": (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "fill_holes": (0, 16, 64, 256, 1024, 4096),
    "threshold": tuple(round(0.05 * step, 2) for step in range(2, 19)),  # 0.1 to 0.9
    "cut": (0, 1, 2, 3, 4, 5),
    "neck": (0.0, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9),
    "opening": (0, 1, 2, 3),
    "closing": (0, 1, 2, 3),
}
ORDER = {  # in which they are tried, by the task
    "semantic": ("threshold", "fill_holes", "smallest", "opening", "closing"),
    "instance": ("smallest", "fill_holes", "threshold", "cut", "neck", "opening", "closing"),
}

METRICS = {"iou": "semantic", "dice": "semantic", "miou": "semantic", "boundary": "semantic", "matching": "instance"}

Seen = tuple[npt.NDArray[Any], npt.NDArray[np.float16], Any]  # labels (H, W), probabilities (K, H, W) and the truth


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        metric: a name of `METRICS`.
        pictures: how many were looked at.
        tried: how many settings were tried.
        before: the metric with the clean-up that the model had, or none.
        after: with the one found.
        settings: the one found.
        curve: the metric by threshold, at the best of what is tried before it (`ORDER`).
    """

    metric: str
    pictures: int
    tried: int
    before: float
    after: float
    settings: CleanupSettings
    curve: dict[float, float]


def tune(
    run: str | Path,
    data: str | Path | Dataset | None = None,
    *,
    metric: str = "iou",
    split: str = "val",
    device: str = "auto",
    write: bool = True,
) -> Tuned:
    """Finds threshold and clean-up for a model by a metric, and keeps them in its file, so that prediction repeats it.

    Args:
        run: the folder of a run, or a model file, of a semantic model with a background.
        data: the data set; None takes the one that the model was trained on.
        metric: what is to be best: "iou" or "dice" (mean over the foreground classes), "miou", "boundary" (F score
            within 2 pixels), or "matching" (StarDist's matching accuracy at an IoU of 0.5 of the objects that
            `cleanup.objects` makes of the map), for which the data must tell objects apart.
        split: what is looked at. Never the test split, on which the result would be no honest number any more.
        device: "auto", "cpu", "cuda"...
        write: whether the model file gets the settings, and `tune.png` with the curve is written beside it.

    Raises:
        KirieError: when the model or the data cannot be used, the metric is unknown, or the split is the test split.
    """
    if metric not in METRICS:
        raise KirieError(f"There is no metric {metric!r:.60} to tune by; expected {', '.join(METRICS)}.")
    if canonical(split) == "test":
        raise KirieError(
            "The test split is for the last measurement: settings chosen on it would flatter the model. Tune on val."
        )
    path = model_path(run)
    model = load(path)
    if model.task != "semantic":
        raise KirieError(f"Thresholds and clean-up are for semantic models; {path} is for task {model.task!r}.")
    known = foreground(model.classes)
    dataset = _opened(model, data, METRICS[metric], split)
    if dataset.task != METRICS[metric]:
        raise KirieError(
            f"{metric} is measured on truth for task {METRICS[metric]!r}, the data are opened for {dataset.task!r}: "
            "open them for that task, or give their path."
        )
    had, model.cleanup = model.cleanup, None
    seen = _probabilities(Predictor(model, device=device, scores=True), dataset)
    scored = partial(_score, seen, model.classes, known, metric)
    before = scored(had or CleanupSettings())
    search = _Search(scored)
    names = ORDER[METRICS[metric]]
    curve = {name: search.along(name, VALUES[name]) for name in names}["threshold"]
    for name in names:
        search.along(name, search.beside(name))
    best, settings = (search.best, search.settings) if had is None or search.best > before else (before, had)
    if best < 0:
        raise KirieError(
            f"{metric} cannot be measured: the {len(seen)} pictures of {split} show none of the foreground."
        )
    found = Tuned(metric, len(seen), len(search.known), before, best, settings, curve)
    if write:
        model.cleanup = settings
        save(model, path, scores=read_card(path).scores)
        with whole_file(path.parent / "tune.png") as stand_in:
            stand_in.write_bytes(_figure(found))
    return found


class _Search:
    """One setting after another, each at the best of those before."""

    def __init__(self, scored: Callable[[CleanupSettings], float]) -> None:
        self.scored, self.settings = scored, CleanupSettings()
        self.best = scored(self.settings)
        self.known = {repr(self.settings): self.best}

    def along(self, name: str, values: Sequence[Any]) -> dict[Any, float]:
        """The metric by the values of a setting, of which the best stays."""
        start, found = self.settings, {}
        for value in tracked(values, name.replace("_", " ")):
            settings = _with(start, name, value)
            key = repr(settings)
            if key not in self.known:
                self.known[key] = self.scored(settings)
            if self.known[key] > self.best + GAIN:
                self.best, self.settings = self.known[key], settings
            found[value] = self.known[key]
        return found

    def beside(self, name: str) -> tuple[Any, ...]:
        """The values before and after the one that a setting has."""
        values = VALUES[name]
        now = getattr(self.settings if hasattr(self.settings, name) else self.settings.rules, name)
        if now not in values:
            return ()
        place = values.index(now)
        return values[max(0, place - 1) : place] + values[place + 1 : place + 2]


def _with(settings: CleanupSettings, name: str, value: Any) -> CleanupSettings:
    """The settings with one of them, or of the rules for all classes, at a value."""
    change = {name: value}
    if hasattr(settings, name):
        return replace(settings, **change)
    return replace(settings, rules=replace(settings.rules, **change))


def _opened(model: Any, data: str | Path | Dataset | None, task: str, split: str) -> Dataset:
    """The pictures to tune on, with truth for the task."""
    if data is None:
        recipe = model.recipe if isinstance(model.recipe, dict) else {}
        section = recipe.get("data")
        data = section.get("path") if isinstance(section, dict) else None
        if not isinstance(data, str) or not Path(data).exists():
            raise KirieError(f"The data that the model was trained on ({data!r:.80}) are not there: give a data set.")
    if not isinstance(data, str | Path):
        return data.only(split)
    return open_for(as_task(model, task), data, split, None)


def _probabilities(predictor: Predictor, dataset: Dataset) -> list[Seen]:
    """Of each picture its labels and what the model is how sure of, in half precision, with the truth."""
    if not len(dataset):
        raise KirieError("The data set has no pictures in this split, so there is nothing to tune on.")
    if dataset.task == "semantic":
        check_classes(predictor.model, dataset)
    looked_at = np.unique(np.linspace(0, len(dataset) - 1, SIZES).round().astype(int)).tolist()
    pixels = np.mean([np.prod(dataset[index].image.shape[:2]) for index in looked_at])
    room = max(1, int(MOST_BYTES / (2 * len(predictor.model.classes) * pixels)))
    places = np.unique(np.linspace(0, len(dataset) - 1, min(room, len(dataset))).round().astype(int)).tolist()
    if len(places) < len(dataset):
        say(f"tuning on {len(places)} of {len(dataset)} pictures, evenly chosen, for memory's sake")
    samples = read_ahead(lambda i: dataset[places[i]], len(places))
    dtype = np.uint8 if predictor.model.classes.void == 255 else np.int32
    seen = []
    for sample in tracked(samples, "predicting", len(places)):
        scores = predictor([sample.image])[0].scores.astype(np.float16)
        seen.append((scores.argmax(0).astype(dtype), scores, sample.truth))
    return seen


def _score(
    seen: Sequence[Seen], classes: Classes, known: tuple[int, ...], metric: str, settings: CleanupSettings
) -> float:
    """The metric over all pictures with these settings; below all others where there is nothing to measure."""
    areas, outlines, matches = SemanticMetric(classes), BoundaryMetric(classes, tolerance=2.0), Matching.none(1)

    def cleaned(one: Seen) -> tuple[SemanticMap | Matching, Any]:
        labels, scores, truth = one
        result = clean(SemanticMap(labels, classes, scores.astype(np.float32)), settings)
        if isinstance(truth, Instances):
            return Matching.of(objects(result, settings), truth, within_class=False), None
        return replace(result, scores=None), replace(truth, classes=classes)

    with ThreadPoolExecutor(THREADS) as pool:
        for result, truth in pool.map(cleaned, seen):
            if isinstance(result, Matching):
                matches += result
            else:
                (outlines if metric == "boundary" else areas).update(result, truth)
    if metric == "matching":
        value = float(matches.accuracy[0, 0])
    elif metric == "boundary":
        value = outlines.compute().mean_f
    else:
        report = areas.compute()
        value = report.miou if metric == "miou" else _mean(getattr(report, metric)[list(known)])
    return value if np.isfinite(value) else -1.0


def _mean(values: npt.NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _figure(found: Tuned) -> bytes:
    """The metric by threshold, with the threshold that was chosen."""
    places = np.array(list(found.curve))
    values = np.array([value if value >= 0 else np.nan for value in found.curve.values()])
    lines = {found.metric: values}
    if found.settings.threshold in found.curve:
        lines["chosen"] = np.where(places == found.settings.threshold, values, np.nan)
    return figure_png(lines_figure(places, lines, across="threshold of the foreground", up=found.metric, marks=True))
