"""Panoptic maps by two models: one that knows the classes of all pixels, one that finds objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.merging import MergeSettings, joint_classes, merge
from kirie.models.contract import SegmentationModel
from kirie.prediction.pictures import Picture
from kirie.prediction.predictor import Predictor, Predicts, in_batches, shown_from
from kirie.prediction.tile_size import TileSize
from kirie.prediction.tiling import Tiled
from kirie.results import PanopticMap


class Together(NamedTuple):
    """What two models give together; see `predictor.Answering`."""

    task: str
    classes: Classes
    in_channels: int


class PanopticPair:
    """A semantic and an instance model whose results are merged, in place of a `Predictor` of a panoptic model.

    The classes are those of the instance model as things, and as stuff what the semantic model knows beside them, told
    by their names; see `joint_classes`. Each model sees the pictures at the size that it wants.

    Args:
        semantic: a model for task "semantic".
        instance: a model for task "instance".
        score: objects score at least so much; None takes the instance model's own `shown_threshold`.
        overlap: see `MergeSettings`.
        stuff_area: likewise.
        device: "auto" (a GPU where there is one), or a torch device.
        batch_size: see `Predictor`.

    Attributes:
        model: task "panoptic", and the classes of the results.

    Raises:
        KirieError: when the models are for other tasks or channels, or the semantic one knows no stuff.
    """

    def __init__(
        self,
        semantic: SegmentationModel,
        instance: SegmentationModel,
        *,
        score: float | None = None,
        overlap: float = MergeSettings.overlap,
        stuff_area: int = MergeSettings.stuff_area,
        device: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        for word, model in (("semantic", semantic), ("instance", instance)):
            if model.task != word:
                raise KirieError(f"The {word} model of a pair is one for task {word!r}, got one for {model.task!r}.")
        if semantic.in_channels != instance.in_channels:
            raise KirieError(
                f"The models of a pair see the same pictures, but the semantic one takes {semantic.in_channels} "
                f"channels and the instance one {instance.in_channels}."
            )
        least = shown_from(instance) if score is None else score
        self.settings = MergeSettings(MergeSettings.score if least is None else least, overlap, stuff_area)
        self.joint = joint_classes(semantic.classes, instance.classes)
        self.model = Together("panoptic", self.joint.classes, semantic.in_channels)
        self.scores = False
        self._semantic = Predictor(semantic, device=device, batch_size=batch_size)
        self._instance = Predictor(instance, device=device, batch_size=batch_size, threshold=self.settings.score)
        self.batch_size = self._semantic.batch_size

    def __call__(self, pictures: Sequence[Picture]) -> list[PanopticMap]:
        """One panoptic map per picture (H, W, C) uint8, in their order and at their size.

        Raises:
            KirieError: as a `Predictor`.
        """
        pairs = zip(self._semantic(pictures), self._instance(pictures), strict=True)
        return [merge(labels, objects, self.joint, self.settings) for labels, objects in pairs]

    def stream(self, pictures: Iterable[Picture]) -> Iterator[Any]:
        """Maps one after another, in order, for any number of pictures; holds one batch at a time."""
        for batch in in_batches(pictures, self.batch_size):
            yield from self(batch)


def shown_pair(
    semantic: SegmentationModel,
    instance: SegmentationModel,
    *,
    tile: int | str | None = None,
    tile_overlap: int | None = None,
    **settings: Any,
) -> Predicts:
    """A `PanopticPair`, or a `Tiled` one that looks at larger pictures in windows; as `shown_predictor` of one model.

    Args:
        semantic: see `PanopticPair`.
        instance: likewise.
        tile: see `predict`.
        tile_overlap: see `predict`.
        settings: as `PanopticPair` takes them.
    """
    pair, tiles = (
        PanopticPair(semantic, instance, **settings),
        TileSize.wished([semantic, instance], tile, tile_overlap),
    )
    if tiles is None:
        return pair
    windows = PanopticPair(semantic, instance, **settings | {"stuff_area": 0})
    return Tiled(pair, windows, tiles, stuff_area=pair.settings.stuff_area)
