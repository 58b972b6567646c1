"""Data sets: pictures with their truth, read from the formats in use. `DATASETS` is the table of formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kirie.data.listed import is_own, own_dataset
from kirie.errors import KirieError
from kirie.lookup import look_up

if TYPE_CHECKING:
    from kirie.data.dataset import Dataset
    from kirie.data.folders import FolderDataset
    from kirie.data.layouts import FolderSettings

# In the order in which they are tried: the first whose `recognises` says so opens it, so the special come
# before the general, and the last one says what is wrong with a path that none recognises.
DATASETS = {
    "voc": "kirie.data.voc:VocDataset",
    "cityscapes": "kirie.data.cityscapes:CityscapesDataset",
    "ade20k": "kirie.data.ade20k:Ade20kDataset",
    "coco_panoptic": "kirie.data.coco_panoptic:CocoPanopticDataset",
    "coco": "kirie.data.coco:CocoDataset",
    "yolo": "kirie.data.yolo:YoloDataset",
    "folders": "kirie.data.folders:FolderDataset",
}


def dataset_class(
    path: str | Path, settings: FolderSettings | None = None, task: str | None = None
) -> type[FolderDataset]:
    """The format of the data in a folder: that of `settings.format`, else the first in `DATASETS` that recognises it.

    Raises:
        KirieError: when `settings.format` is no row of the table.
    """
    named = settings.format if settings else None
    if named is not None and named not in DATASETS:
        raise KirieError(f"data.format is {named!r}; expected one of {', '.join(DATASETS)}.")
    for row in DATASETS.values() if named is None else (DATASETS[named],):
        form: type[FolderDataset] = look_up(row)
        if form.recognises(path, task, settings):
            break
    return form


def open_dataset(
    path: str | Path, split: str | None = None, *, task: str | None = None, settings: FolderSettings | None = None
) -> Dataset:
    """The data set in a folder, opened by the format that `dataset_class` finds.

    Args:
        path: the folder, or a COCO JSON file, or the YAML file of a YOLO data set.
        split: train, val or test; None for all pictures.
        task: semantic, instance or panoptic; None for the one that the label files serve.
        settings: how to read it (`layouts.FolderSettings`); None looks for itself.

    Raises:
        KirieError: when the folder is missing, a file, empty or in no layout that is known.
    """
    if is_own(path):
        return own_dataset(path, split, task=task, settings=settings)
    return dataset_class(path, settings, task)(path, split, task=task, settings=settings)


def is_dataset(path: str | Path) -> bool:
    """Whether a path is a folder, or a file that a format of `DATASETS` takes for the whole data set."""
    return Path(path).is_dir() or (Path(path).is_file() and any(look_up(r).recognises(path) for r in DATASETS.values()))
