"""Data sets: pictures with their truth, read from the formats in use. `DATASETS` is the table of formats."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kirie.data.dataset import Dataset
    from kirie.data.layouts import FolderSettings

# In the order in which they are tried: the first whose `recognises(path)` says so opens it, so the special come before
# the general, and the last one says what is wrong with a path that none recognises.
DATASETS = {
    "folders": "kirie.data.folders:FolderDataset",
}


def open_dataset(
    path: str | Path, split: str | None = None, *, task: str | None = None, settings: FolderSettings | None = None
) -> Dataset:
    """The data set in a folder, opened by the first format in `DATASETS` that recognises it.

    Args:
        path: the folder.
        split: train, val or test; None for all pictures.
        task: semantic, instance or panoptic; None for the one that the label files serve.
        settings: how to read it (`layouts.FolderSettings`); None looks for itself.

    Raises:
        KirieError: when the folder is missing, a file, empty or in no layout that is known.
    """
    for row in DATASETS.values():
        module, _, name = row.partition(":")
        form = getattr(importlib.import_module(module), name)
        if form.recognises(path):
            break
    dataset: Dataset = form(path, split, task=task, settings=settings)
    return dataset
