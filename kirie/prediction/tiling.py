"""Any predictor over windows of a picture, their answers made one: maps blended, objects stitched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.cleanup import CleanupSettings, clean
from kirie.counting import occurrences
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.prediction.grid import Grid
from kirie.prediction.pictures import Picture
from kirie.prediction.predictor import Answering, Predicts, in_batches
from kirie.prediction.stitching import LEAST_OVERLAP, instances
from kirie.prediction.sweep import Sweep
from kirie.prediction.tile_size import TileSize
from kirie.reading.windows import in_memory
from kirie.results import Instances, PanopticMap, Segment, SemanticMap, id_map


class Tiled:
    """A predictor that looks at large pictures in overlapping windows; in place of the one that it holds.

    Semantic maps: probabilities are averaged with Gaussian weights, and the clean-up is done once, on the whole.
    Objects that an edge cuts are joined and counted once, of any size; see `stitching`. Limits of a model, such as how
    many objects it gives, are those of a window.

    Args:
        whole: for pictures that are not taken apart.
        windows: for windows: the same, but of a semantic model with scores and without clean-up, of a panoptic one with
            stuff of any area.
        tiles: how large windows are, and which pictures are taken apart.
        cleanup: of semantic maps.
        stuff_area: of panoptic maps, see `MergeSettings`.

    Attributes:
        windows, tiles, cleanup, stuff_area: as above.

    Raises:
        KirieError: when windows are to share too little for objects to be told again.
    """

    def __init__(
        self,
        whole: Predicts,
        windows: Predicts,
        tiles: TileSize,
        *,
        cleanup: CleanupSettings | None = None,
        stuff_area: int = 0,
    ) -> None:
        if whole.model.task != "semantic" and tiles.asked_overlap is not None and tiles.asked_overlap < LEAST_OVERLAP:
            raise KirieError(
                f"Objects that an edge of a tile cuts are told again by what tiles share: at least {LEAST_OVERLAP} "
                f"pixels, got {tiles.asked_overlap}. Let tiles overlap more."
            )
        self._whole, self.windows, self.tiles = whole, windows, tiles
        self.cleanup, self.stuff_area = cleanup, stuff_area

    @property
    def model(self) -> Answering:
        """Where the results come from."""
        return self._whole.model

    @property
    def batch_size(self) -> int:
        """Pictures that are best given at once."""
        return self._whole.batch_size

    @property
    def scores(self) -> bool:
        """Whether results keep probabilities per pixel."""
        return self._whole.scores

    def __call__(self, pictures: Sequence[Picture]) -> list[Any]:
        """One result per picture (H, W, C) uint8, in their order and at their size.

        Raises:
            KirieError: as a `Predictor`.
        """
        results: list[Any] = []
        for apart, group in groupby(pictures, lambda picture: self.tiles.takes_apart(picture.shape[:2])):
            same = list(group)
            results += [self._stitched(picture) for picture in same] if apart else self._whole(same)
        return results

    def stream(self, pictures: Iterable[Picture]) -> Iterator[Any]:
        """Results one after another, in order, for any number of pictures; holds one batch at a time."""
        for batch in in_batches(pictures, self.batch_size):
            yield from self(batch)

    def sweep(self, grid: Grid, *, scores: bool = False) -> Sweep:
        """What goes over the windows of a picture."""
        threshold = None if self.cleanup is None else self.cleanup.threshold
        return Sweep(self.windows, grid, threshold=threshold, scores=scores)

    def _stitched(self, picture: Picture) -> Any:
        classes, task = self.model.classes, self.model.task
        size = (picture.shape[0], picture.shape[1])
        done = list(
            self.sweep(Grid.of(size, self.tiles.side, self.tiles.overlap), scores=self.scores).rows(in_memory(picture))
        )
        maps = [rows.map for rows in done if rows.map is not None]
        labels: Any = np.concatenate([rows.labels for rows in maps]) if maps else None
        if task == "semantic":
            chances: Any = np.concatenate([rows.scores for rows in maps], 1) if self.scores else None
            result = SemanticMap(labels, classes, chances)
            return result if self.cleanup is None else clean(result, replace(self.cleanup, threshold=None))
        found = [instances(rows.objects, size, classes) for rows in done if rows.objects is not None]
        objects = joined(found)
        if task == "instance":
            return objects[np.argsort(-objects.scores, kind="stable")]
        return panoptic(objects, labels, self.stuff_area)


def joined(parts: Sequence[Instances]) -> Instances:
    """The objects of several parts of one picture, in their order."""
    masks = Masks(parts[0].size, tuple(item for part in parts for item in part.masks.items))
    labels, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "scores"))
    return Instances.from_masks(masks, labels, parts[0].classes, scores)


def panoptic(things: Instances, stuff: npt.NDArray[Any], least: int) -> PanopticMap:
    """A panoptic map of things and, where there are none, of stuff.

    Args:
        things: numbered from 1 on in their order; those of which nothing is to be seen are left out.
        stuff: (H, W) labels, or void.
        least: pixels that a class of stuff has in all, or it is void.
    """
    ids = id_map(things)
    areas = occurrences(ids, len(things) + 1)
    rows = enumerate(zip(things.labels.tolist(), things.scores.tolist(), strict=True), 1)
    segments = [Segment(i, label, True, score, int(areas[i])) for i, (label, score) in rows if areas[i]]
    free = np.where(ids == 0, stuff, things.classes.void)
    counts = occurrences(free, things.classes.void + 1)
    for label in range(len(things.classes)):
        if counts[label] >= max(least, 1):
            number = len(things) + 1 + label
            ids[free == label] = number
            segments.append(Segment(number, label, False, 1.0, int(counts[label])))
    return PanopticMap(ids, tuple(segments), things.classes)
