"""One sheet that shows pictures of a data set beside their truth and what a model sees in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from PIL import Image

from kirie.data.dataset import Dataset
from kirie.drawing import contact_sheet, draw
from kirie.prediction.predictor import Predictor, shown_from
from kirie.prediction.selection import select
from kirie.results import Instances

CELL = (180, 720)  # (H, W) of a picture with its truth and its result


def result_sheet(predictor: Predictor, dataset: Dataset, indexes: Iterable[int]) -> Image.Image:
    """Per chosen picture, two to a row: the picture, its truth, the result, of objects those worth showing.

    Args:
        predictor: of a model with the data set's classes.
        dataset: where pictures and truths come from.
        indexes: which of its pictures.

    Raises:
        KirieError: when a picture cannot be read.
    """
    cells: list[tuple[str, list[Any]]] = []
    for index in indexes:
        sample = dataset[index]
        result = predictor([sample.image])[0]
        if isinstance(result, Instances):
            result = select(result, threshold=shown_from(predictor.model))
        shown = [sample.image[..., :3], draw(sample.truth, sample.image), draw(result, sample.image)]
        cells.append((f"{sample.name}: picture, truth, result", shown))
    return contact_sheet(cells, columns=2, cell=CELL)
