"""Pictures whose labels a trained model contradicts: probable mistakes of the labels, for a person to look at.

After confident learning (Northcutt, Jiang and Chuang 2021): where a model is sure and the label says otherwise, the
label is often the one that is wrong. A model contradicts labels that it has learned from less than others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kirie.data import open_dataset
from kirie.data.dataset import Dataset, Sample
from kirie.data.layouts import FolderSettings
from kirie.data.splits import SPLITS, canonical
from kirie.drawing import contact_sheet, difference, draw
from kirie.errors import KirieError, counted
from kirie.matches import overlaps
from kirie.models.contract import SegmentationModel
from kirie.models.file import load, model_paths
from kirie.prediction.evaluate import check_classes, folder_settings, learned_from
from kirie.prediction.predictor import Predictor, read_ahead
from kirie.progress import tracked
from kirie.results import Instances, SemanticMap, to_semantic

SURE = 0.9  # of a pixel's class or an object
OVERLAP = 0.3  # IoU of an object and a label that mean the same
UNUSUAL = 3.5  # robust standard deviations above the middle picture, from which on a contradiction is extreme
LEAST = 0.01  # of what is labelled, below which no contradiction is worth a look
MOST = 50


@dataclass(frozen=True)
class Suspect:
    """A picture whose labels are probably wrong somewhere.

    Attributes:
        name: of the picture.
        image: its file; '' where it has none.
        split: which it belongs to.
        share: of the labelled pixels (of the labelled and found objects) that the model surely contradicts.
        usual: the same of the middle picture.
        why: what is contradicted, in words.
        learned: whether the model has learned from this very label, so that it tells less.
    """

    name: str
    image: str
    split: str
    share: float
    usual: float
    why: str
    learned: bool


class _Seen(NamedTuple):
    """A picture that was compared, and where it can be read again."""

    predictor: Predictor
    dataset: Dataset
    number: int
    split: str
    learned: bool
    share: float
    why: str


@dataclass(frozen=True)
class Suspects:
    """What was found.

    Attributes:
        pictures: how many were compared.
        found: the suspects, the most contradicted first, at most `MOST`.
        sheet: a sheet of up to 12 of them (picture, label, where they differ), or None where there are none.
    """

    pictures: int
    found: tuple[Suspect, ...]
    sheet: Any

    def lines(self) -> list[str]:
        """In plain text."""
        if not self.found:
            return [f"no label of {counted(self.pictures, 'picture')} is contradicted by the model more than usual"]
        lines = [f"labels to look at, of {counted(self.pictures, 'picture')}, the most contradicted first:"]
        for each in self.found:
            told = ", though it was learned from" if each.learned else ""
            lines.append(f"  {each.image or each.name} ({each.split}): {each.why}; usual are {each.usual:.1%}{told}")
        return lines


def find_suspects(
    run: str | Path, data: str | Path, *, settings: FolderSettings | None = None, device: str = "auto"
) -> Suspects:
    """Compares what a model is sure of with the labels of a data set, and names the pictures where they differ most.

    A picture is a suspect when its contradicted share is above the middle picture's by `UNUSUAL` robust standard
    deviations (1.4826 times the median absolute deviation) and at least 1 %.

    Args:
        run: a run's folder, a model file, or the folder of a k-fold training, whose models each judge the part that
            they have not learned from, so that all labels are judged by a model that never saw them.
        data: the data set.
        settings: how its folders are read; None reads them as the model's recipe did.
        device: "auto", "cpu", "cuda"...

    Raises:
        KirieError: when model or data cannot be used, or the data have other classes than the model.
    """
    paths = model_paths(run)
    seen: list[_Seen] = []
    for path in paths:
        model = load(path)
        parts = _parts(model, data, settings, folds=len(paths) > 1)
        # What was cleaned up has no scores any more that say how sure the model is.
        predictor = Predictor(model, device=device, scores=model.task == "semantic", cleanup=False)
        for split, dataset, learned in parts:
            check_classes(model, dataset)
            seen += _compared(predictor, dataset, split, learned)
    if not seen:
        raise KirieError(f"{data} has no labelled pictures to compare with what the model sees.")
    shares = np.array([each.share for each in seen])
    usual = float(np.median(shares))
    limit = max(usual + UNUSUAL * 1.4826 * float(np.median(np.abs(shares - usual))), LEAST)
    ranked = sorted((each for each in seen if each.share > limit), key=lambda each: -each.share)[:MOST]
    found = tuple(_suspect(each, usual) for each in ranked)
    return Suspects(len(seen), found, _sheet(ranked[:12]) if ranked else None)


def _parts(
    model: SegmentationModel, data: str | Path, settings: FolderSettings | None, *, folds: bool
) -> Iterator[tuple[str, Dataset, bool]]:
    """The splits to judge, and whether the model has learned from them."""
    read = replace(settings or folder_settings(model), channels=model.in_channels)
    if settings is not None and folds:
        read = replace(read, fold=folder_settings(model).fold)
    whole = open_dataset(data, task=model.task, settings=read)
    if folds:
        yield "val", whole.only("val"), False
        return
    section = (model.recipe or {}).get("data")
    trained = section.get("train", "train") if isinstance(section, dict) and learned_from(model, data) else None
    trained = canonical(trained) if isinstance(trained, str) else None
    for split in SPLITS:
        try:
            part = whole.only(split)
        except KirieError:
            continue  # there is none
        yield split, part, split == trained


def _compared(predictor: Predictor, dataset: Dataset, split: str, learned: bool) -> Iterator[_Seen]:
    count = len(dataset)

    def read(number: int) -> Sample | None:
        try:
            return dataset[number]
        except KirieError:
            return None  # inspecting tells what is wrong with it

    for number, sample in enumerate(tracked(read_ahead(read, count), f"comparing {split}", count)):
        if sample is not None:
            share, why = _contradicted(predictor([sample.image])[0], sample)
            yield _Seen(predictor, dataset, number, split, learned, share, why)


def _contradicted(result: Any, sample: Sample) -> tuple[float, str]:
    """The share of a picture's labels that a result surely contradicts, and what that is in words."""
    truth: Any = sample.truth
    if isinstance(truth, Instances):
        return _of_objects(result, truth)
    labels = to_semantic(truth)
    shown = to_semantic(result)
    wrong = (labels.labels != shown.labels) & (labels.labels != labels.classes.void)
    wrong &= shown.labels != shown.classes.void
    if isinstance(result, SemanticMap) and result.scores is not None:
        wrong &= np.asarray(result.scores).max(0) >= SURE
    known = int((labels.labels != labels.classes.void).sum())
    share = float(wrong.sum()) / max(known, 1)
    pairs = labels.labels[wrong].astype(np.int64) * len(labels.classes) + shown.labels[wrong]
    if not len(pairs):
        return share, "nothing"
    label, seen = divmod(int(np.bincount(pairs).argmax()), len(labels.classes))
    return share, f"{share:.1%} of the pixels, most of them {labels.classes.names[label]} that look like " + (
        shown.classes.names[seen]
    )


def _of_objects(result: Instances, truth: Instances) -> tuple[float, str]:
    table = overlaps(result, truth, within_class=False)
    sure = result.scores >= SURE
    unlabelled = int((sure & (table.max(1, initial=0.0) < OVERLAP)).sum())
    unseen = int((~truth.crowd & (table.max(0, initial=0.0) < OVERLAP)).sum())
    share = (unlabelled + unseen) / max(1, int((~truth.crowd).sum()) + unlabelled)
    told = f"{counted(unlabelled, 'object')} without a label, {counted(unseen, 'label')} without an object"
    return share, f"{share:.1%} of the objects ({told})"


def _suspect(each: _Seen, usual: float) -> Suspect:
    image = str(each.dataset.file_facts(each.number).get("image", ""))
    return Suspect(each.dataset.name(each.number), image, each.split, each.share, usual, each.why, each.learned)


def _sheet(ranked: Sequence[_Seen]) -> Any:
    cells: list[tuple[str, Sequence[Any]]] = []
    for each in ranked:
        sample = each.dataset[each.number]
        shown = sample.image[..., :3] if sample.image.shape[2] >= 3 else sample.image[..., :1]
        result = replace(each.predictor([sample.image])[0], classes=each.dataset.classes)
        if isinstance(result, Instances):
            result = result[result.scores >= SURE]
        cells.append((sample.name, [shown, draw(sample.truth, shown), difference(result, sample.truth, shown)]))
    return contact_sheet(cells, columns=2, cell=(240, 720))
