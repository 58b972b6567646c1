"""The objects of a semantic model: the regions of its map, taken apart where they touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from kirie.cleanup import CleanupSettings, clean, foreground, objects
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models.contract import SegmentationModel
from kirie.models.parts.instance import Chosen, InstanceModel
from kirie.results import Instances, Result, SemanticMap

_NOT_SO = "The objects of a semantic model are found in its map, not by its network: train and export the model itself."


class RegionObjects(InstanceModel):
    """A semantic model seen as an instance model, so that a U-Net can count cells; see `cleanup.objects`.

    It predicts and is measured like any instance model. It cannot be trained, saved or exported: that is for the
    semantic model, which it holds and shares.

    Args:
        semantic: a model for task "semantic" with a background. Its `cleanup` is done first; without one, objects are
            taken apart by the default.

    Raises:
        KirieError: when the model is for another task or has no background.
    """

    shown_threshold = 0.0
    max_detections = 2**20

    def __init__(self, semantic: SegmentationModel) -> None:
        if semantic.task != "semantic":
            raise KirieError(f"Objects are taken from the map of a semantic model, got one for task {semantic.task!r}.")
        super().__init__(semantic.in_channels, semantic.classes.subset(foreground(semantic.classes)), {})
        self.semantic = semantic
        self.inputs, self.recipe = semantic.inputs, semantic.recipe

    def forward(self, images: Tensor) -> Any:
        """What the semantic model gives."""
        return self.semantic(images)

    def loss(self, raw: Any, truths: Sequence[Result]) -> dict[str, Tensor]:
        """Raises a KirieError: the semantic model is what learns."""
        raise KirieError(_NOT_SO)

    def decode(
        self, raw: Any, sizes: Sequence[tuple[int, int]], *, scores: bool = False, least: float = 0.0
    ) -> list[Instances]:
        """The objects of each picture at the sizes (H, W) asked for, at most `max_detections`, the surest first."""
        found = []
        for labels in self.semantic.decode(raw, sizes, scores=True):
            each = self.of_map(labels)
            order = np.argsort(-each.scores, kind="stable")[: self.max_detections]
            found.append(each[order[each.scores[order] >= least]])
        return found

    def of_map(self, labels: SemanticMap) -> Instances:
        """The objects of a map with scores that the semantic model gave, which is cleaned first."""
        settings = self.semantic.cleanup or CleanupSettings()
        return objects(clean(labels, settings), settings)

    def choose(self, raw: Any, size: Tensor) -> Chosen:
        """Raises a KirieError: there is no way that leaves out the map."""
        raise KirieError(_NOT_SO)

    def maps(self, raw: Any, sources: tuple[Tensor, ...]) -> Tensor:
        """Raises a KirieError, as `choose`."""
        raise KirieError(_NOT_SO)

    def cut(self, boxes: Any, maps: Any, seen: tuple[int, int], size: tuple[int, int]) -> Masks:
        """Raises a KirieError, as `choose`."""
        raise KirieError(_NOT_SO)


def as_task(model: SegmentationModel, task: str | None) -> SegmentationModel:
    """The model for a task: itself, or its `RegionObjects` where objects are wanted of a semantic model.

    Raises:
        KirieError: when the model cannot serve the task.
    """
    if task in (None, model.task):
        return model
    if task == "instance" and model.task == "semantic":
        return RegionObjects(model)
    raise KirieError(
        f"A model for task {model.task!r} gives no results for task {task!r:.60}; a semantic model can serve the task "
        "'instance', each region being an object."
    )
