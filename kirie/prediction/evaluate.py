"""Measuring a model on a data set: the numbers, each picture's own score, and the report that shows both."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kirie.classes import Classes
from kirie.data import open_dataset
from kirie.data.dataset import Dataset, Sample
from kirie.data.folders import FolderSettings
from kirie.data.splits import canonical
from kirie.drawing import PictureRow, ReportContent, ReportFigure, difference, distribution_figure, draw, write_report
from kirie.errors import KirieError, counted
from kirie.files import write_text
from kirie.metrics import metric_class
from kirie.metrics.instance import InstanceReport
from kirie.metrics.report import Metric, Report
from kirie.models.contract import SegmentationModel
from kirie.models.parts.instance import InstanceModel
from kirie.prediction.averaging import Averaged
from kirie.prediction.evaluation_page import numbers_page
from kirie.prediction.predictor import Predictor, in_batches, read_ahead
from kirie.progress import tracked

SHOWN = 6  # pictures at either end of the report


@dataclass(frozen=True)
class Evaluation:
    """A model measured on a data set.

    Attributes:
        report: the numbers over all pictures, as the task has them: a `SemanticReport`, an `InstanceReport` or a
            `PanopticReport`.
        names: the pictures, in the data set's order.
        scores: each picture's own score (mean IoU; matching accuracy of objects; panoptic quality), NaN where there is
            nothing to score.
    """

    report: Any
    names: tuple[str, ...]
    scores: tuple[float, ...]

    def worst(self, count: int) -> list[int]:
        """Indices of the pictures with the lowest scores, the lowest first; pictures without a score are left out."""
        return self._ranked()[:count]

    def best(self, count: int) -> list[int]:
        """Indices of the pictures with the highest scores, the highest first; `worst` from its other end."""
        return self._ranked()[::-1][:count]

    def _ranked(self) -> list[int]:
        scored = [index for index, score in enumerate(self.scores) if not math.isnan(score)]
        return sorted(scored, key=lambda index: self.scores[index])


def measure(
    predictor: Predictor | Averaged,
    dataset: Dataset,
    *,
    share: tuple[int, int] = (0, 1),
    gather: Callable[[Metric], Sequence[Metric]] | None = None,
    title: str = "",
    threshold: float | None = None,
    max_detections: int | None = None,
) -> Evaluation:
    """The model's numbers on a data set. Training's validation and `evaluate` both come through here.

    Args:
        predictor: the model, ready to run.
        dataset: pictures with truth.
        share: (n, of) to measure the n-th of so many equal parts only, when several processes divide the work.
        gather: gives what each of those processes has collected, in their order; the report is on all of it.
        title: what the progress bar says; empty for none.
        threshold: as `evaluate` has it.
        max_detections: as `evaluate` has it.

    Raises:
        KirieError: when the data serve another task, have other classes than the model, or cannot be read.
    """
    check_classes(predictor.model, dataset)
    number, of = share
    places = range(number * len(dataset) // of, (number + 1) * len(dataset) // of)
    new_metric = _metric_of(predictor.model, dataset.classes, threshold, max_detections)
    total = new_metric()
    names: list[str] = []
    scores: list[float] = []
    samples = read_ahead(lambda i: dataset[places[i]], len(places))
    if title:
        samples = tracked(samples, title, len(places))
    for sample, result in _results(predictor, samples, dataset.classes):
        one = new_metric()
        one.update(result, sample.truth)
        total.merge(one)
        names.append(sample.name)
        scores.append(one.quick_score())
    if gather is not None:
        parts, total = gather(total), new_metric()
        for part in parts:
            total.merge(part)
    return Evaluation(total.compute(), tuple(names), tuple(scores))


def _metric_of(
    model: SegmentationModel, classes: Classes, threshold: float | None, max_detections: int | None
) -> Callable[[], Metric]:
    """What makes empty metrics for the results of a model."""
    options: dict[str, Any] = {"threshold": threshold, "max_detections": max_detections}
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(model, InstanceModel):
        given = {"threshold": model.shown_threshold} | given
    elif given:
        raise KirieError(
            f"There is nothing to measure by {' and '.join(given)}: a model for task {model.task!r} gives a map and "
            "no objects to choose among."
        )
    return partial(metric_class(model.task), classes, **given)


def evaluate(
    model: SegmentationModel,
    data: str | Path | Dataset,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    settings: FolderSettings | None = None,
    name: str = "model",
    threshold: float | None = None,
    max_detections: int | None = None,
    tta: str = "none",
    others: Sequence[SegmentationModel] = (),
) -> Any:
    """A model's numbers on a data set, and `report.html` and `report.json` in the folder `out`.

    Args:
        model: a model, as `kirie.load` gives it.
        data: a data set or its folder.
        split: which split of the folder; None takes what the model has not learned from, see `open_for`.
        out: a folder to write the reports to; None writes nothing.
        device: "auto", "cpu", "cuda"...
        settings: how the folders are read; None reads them as the model's recipe did.
        name: what the report calls the model.
        threshold: for objects, the score from which on results are shown and enter the scores that have no score axis
            (matching accuracy, precision, counts...); AP takes results of any score. For a panoptic model, the score
            from which on objects enter its maps. None takes the model's own.
        max_detections: for objects, the most results of a class that enter AP in a picture, and how many the model
            gives at most. None is COCO's 100, and the model's own limit. Pictures with more objects need more.
        tta: test-time augmentation, a row of `averaging.TTA`.
        others: models whose answers are averaged with this one's; see `averaging.Averaged`.

    Returns:
        The `SemanticReport`, `InstanceReport` or `PanopticReport`, as the model's task is.

    Raises:
        KirieError: when the data cannot be read, their classes are not the model's, or the reports cannot be written.
    """
    if not isinstance(model, SegmentationModel):
        raise KirieError(
            f"evaluate measures one model, got a {type(model).__name__}. Measure what several find together with a "
            "metric of kirie.metrics, picture by picture, or write it by `kirie predict --save coco`."
        )
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise KirieError(f"{out} is a file; the reports need a folder, which is made when it is missing.")
    dataset = data if not isinstance(data, str | Path) else open_for(model, data, split, settings)
    if not len(dataset):
        raise KirieError("The data set has no pictures, so there is nothing to measure.")
    merged, measured = (threshold, None) if model.task == "panoptic" else (None, threshold)  # where scores choose
    if tta != "none" or others:
        predictor: Predictor | Averaged = Averaged(
            [model, *others], tta=tta, device=device, threshold=merged, max_detections=max_detections
        )
    else:
        predictor = Predictor(model, device=device, threshold=merged, max_detections=max_detections)
    evaluation = measure(predictor, dataset, title="evaluating", threshold=measured, max_detections=max_detections)
    if out is not None:
        write_evaluation(Path(out), evaluation, predictor, dataset, name=name)
    return evaluation.report


def open_for(model: SegmentationModel, path: str | Path, split: str | None, settings: FolderSettings | None) -> Dataset:
    """A data set opened for a model's task and channels.

    Args:
        model: whose recipe, if its file keeps one, says how the folders are read and which pictures it learned from.
        path: the folder.
        split: the split asked for. None takes the test split, else the val split; where neither folders nor list
            files give splits, what the recipe drew for them when the model was trained on this folder, else everything.
        settings: how the folders are read, in place of the recipe's.

    Raises:
        KirieError: when the data cannot be read or have no such split.
    """
    settings = replace(settings or folder_settings(model), channels=model.in_channels)
    if split is not None:
        return open_dataset(path, split, task=model.task, settings=settings)
    dataset = open_dataset(path, task=model.task, settings=settings)
    wanted = _unseen_split(model, path, dataset.splits)
    return dataset if wanted is None else dataset.only(wanted)


def folder_settings(model: SegmentationModel) -> FolderSettings:
    """How the recipe that a model was trained by reads folders, pictures at their own size; the defaults without one.

    The record may come from anyone or from another version: entries that are unknown are passed over, and where one
    has a wrong value all count as missing.
    """
    try:
        text = json.dumps(_data_section(model))
        settings = TypeAdapter(FolderSettings).validate_json(text, strict=True)
    except (ValueError, TypeError, RecursionError):
        return FolderSettings()
    return replace(settings, short_side=None, gap=0)


def _data_section(model: SegmentationModel) -> Mapping[str, Any]:
    section = (model.recipe or {}).get("data")
    return section if isinstance(section, Mapping) else {}


def _unseen_split(model: SegmentationModel, path: str | Path, splits: Sequence[str]) -> str | None:
    """The split to measure a model on: one that it has not learned from, where that is known; None for everything."""
    val = _data_section(model).get("val")
    if "test" in splits:
        return "test"
    if learned_from(model, path):
        if not splits and folder_settings(model).test_fraction > 0:  # drawn by the seed
            return "test"
        return (canonical(val) if isinstance(val, str) else None) or "val"
    return "val" if "val" in splits else None


def learned_from(model: SegmentationModel, path: str | Path) -> bool:
    """Whether a model was trained on the data set of this path, as its recipe tells."""
    home = _data_section(model).get("path")
    return isinstance(home, str) and _same_place(home, path)


def _same_place(one: str | Path, other: str | Path) -> bool:
    try:
        return Path(one).resolve() == Path(other).resolve()
    except (OSError, ValueError, RuntimeError):  # the name may be anything
        return False


def check_classes(model: SegmentationModel, dataset: Dataset) -> None:
    """Raises a KirieError when a data set serves another task than the model's, or has other classes."""
    if dataset.task != model.task:
        raise KirieError(
            f"The model is for task {model.task!r}, the data are opened for {dataset.task!r}: open them for its task."
        )
    ours, theirs = model.classes.names, dataset.classes.names
    # Weights from elsewhere and label files without a class table have numbers in place of names.
    unnamed = (_are_made_up(ours) or _are_made_up(theirs)) and not (_are_numbered(ours) and _are_numbered(theirs))
    if len(ours) != len(theirs) or not (ours == theirs or unnamed):
        raise KirieError(
            f"The model tells {len(ours)} classes apart ({_listed(ours)}), the data have {len(theirs)} "
            f"({_listed(theirs)}). Evaluate on data with the classes it was trained on, in the same order."
        )


def _are_made_up(names: Sequence[str]) -> bool:
    """Whether the names are those that kirie gives to classes without names."""
    return all(re.fullmatch(r"background|foreground|object|class \d+", name) for name in names)


def _are_numbered(names: Sequence[str]) -> bool:
    return any(re.fullmatch(r"class \d+", name) for name in names)


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def write_evaluation(
    out: Path, evaluation: Evaluation, predictor: Predictor | Averaged, dataset: Dataset, *, name: str
) -> None:
    """Writes `report.html` and `report.json`, about all pictures of a data set, into a folder."""
    scores = {n: None if math.isnan(s) else s for n, s in zip(evaluation.names, evaluation.scores, strict=True)}
    facts = {"model": name, "pictures": len(scores), **evaluation.report.to_dict(), "images": scores}
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    # A file name that is no Unicode is written in JSON's own escapes.
    write_text(out / "report.json", text.encode("utf-8", "backslashreplace").decode("utf-8"))
    scored = sum(score is not None for score in scores.values())
    worst = evaluation.worst(min(SHOWN, (scored + 1) // 2))  # no picture is shown twice
    best = evaluation.best(min(SHOWN, scored // 2))

    def rows(chosen: Sequence[int]) -> tuple[PictureRow, ...]:
        samples = (dataset[index] for index in chosen)
        pairs = _results(predictor, samples, dataset.classes)
        return tuple(
            _picture_row(s, _shown(r, evaluation.report), evaluation.scores[i])
            for i, (s, r) in zip(chosen, pairs, strict=True)
        )

    page = _page(evaluation, numbers_page(predictor.model.task, evaluation.report, f"Evaluation of {name}"))
    write_report(out / "report.html", replace(page, worst=rows(worst), best=rows(best)))


def _page(evaluation: Evaluation, page: ReportContent) -> ReportContent:
    """The page of the numbers with what is told of the pictures as a whole."""
    told = f"{counted(len(evaluation.names), 'picture')}, {counted(len(page.rows), 'class', 'classes')}"
    figures = page.figures
    if not all(map(math.isnan, evaluation.scores)):
        spread = distribution_figure(evaluation.scores, f"{page.score_name} of a picture")
        words = f"One {page.score_name} per picture. A tail to the left: pictures on which the model fails."
        figures = (*figures, ReportFigure(words, spread))
    return replace(page, subtitle=told, figures=figures)


def _shown(result: Any, report: Report) -> Any:
    """What of a result a person is shown: objects from the report's threshold on, and all of anything else."""
    return result[result.scores >= report.threshold] if isinstance(report, InstanceReport) else result


def _results(
    predictor: Predictor | Averaged, samples: Iterable[Sample], classes: Classes
) -> Iterator[tuple[Sample, Any]]:
    """Pairs of sample and result, in the classes of the data; as many samples are held at a time as make a batch."""
    for batch in in_batches(samples, predictor.batch_size):
        for sample, result in zip(batch, predictor([s.image for s in batch]), strict=True):
            yield sample, replace(result, classes=classes)


def _picture_row(sample: Sample, result: Any, score: float) -> PictureRow:
    truth: Any = sample.truth
    return PictureRow(
        name=sample.name,
        score=score,
        image=sample.image,
        truth=draw(truth, sample.image),
        prediction=draw(result, sample.image),
        difference=difference(result, truth, sample.image),
    )
