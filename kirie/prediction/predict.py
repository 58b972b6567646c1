"""The verb `predict`: pictures in memory or files in, results out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kirie.errors import KirieError
from kirie.models.contract import SegmentationModel
from kirie.models.panoptic_fpn import PanopticFPN
from kirie.prediction.averaging import Averaged
from kirie.prediction.pictures import as_picture
from kirie.prediction.predictor import Predictor, Predicts, in_batches, shown_from
from kirie.prediction.tile_size import TileSize
from kirie.prediction.tiling import Tiled


def predict(
    model: SegmentationModel | Predicts,
    images: Any,
    *,
    device: str = "auto",
    scores: bool = False,
    threshold: float | None = None,
    classes: Sequence[str] | None = None,
    max_detections: int | None = None,
    tta: str = "none",
    others: Sequence[SegmentationModel] = (),
    tile: int | str | None = "auto",
    tile_overlap: int | None = None,
) -> Any:
    """What a model sees in a picture, or in each of several.

    Args:
        model: a model, as `kirie.load` gives it; it is moved to the device and set to evaluation mode. Or what predicts
            by itself, a `PanopticPair` say, which has its own settings.
        images: a path, a Pillow image, or an array (H, W) or (H, W, C) of uint8 or uint16, RGB where it has colours:
            one result comes back. A list or tuple of them: a list of results in the same order.
        device: "auto", "cpu", "cuda"...
        scores: keep per-pixel probabilities in the results.
        threshold: the lowest score of the objects that are kept; None takes the model's own `shown_threshold`,
            from which on they are worth showing, and 0 keeps all. Of a panoptic model, that of objects in the map.
        classes: names of the classes whose objects are kept; None keeps all. This and the next are for instance models.
        max_detections: how many objects of a picture are kept, the surest ones; None leaves it at the model's own
            limit.
        tta: test-time augmentation, a row of `averaging.TTA`.
        others: models whose answers are averaged with this one's; see `averaging.Averaged`.
        tile: pictures larger than so many pixels a side are looked at in overlapping windows; see `tiling.Tiled`.
            "auto" does it where the memory does not suffice, None never.
        tile_overlap: pixels that windows share; None for a quarter of a tile, at most 128.

    Raises:
        KirieError: when a picture cannot be read or has another number of channels than the model, a class is unknown,
            or objects are chosen of a model that gives none.
    """
    predictor: Predicts
    choice: dict[str, Any] = {"threshold": threshold, "classes": classes, "max_detections": max_detections}
    if isinstance(model, SegmentationModel):
        choice |= {"tile": tile, "tile_overlap": tile_overlap}
        predictor = shown_predictor(model, device=device, scores=scores, tta=tta, others=others, **choice)
    else:
        given = [value for value in (*choice.values(), tile_overlap) if value is not None]
        if others or tta != "none" or scores or device != "auto" or tile not in ("auto", None) or given:
            raise KirieError(f"A {type(model).__name__} has its own settings: give them to it, and none here.")
        predictor = model
    channels = predictor.model.in_channels
    if isinstance(images, list | tuple):
        pictures = (as_picture(image, channels) for image in images)
        return [result for batch in in_batches(pictures, predictor.batch_size) for result in predictor(batch)]
    return predictor([as_picture(images, channels)])[0]


def shown_predictor(
    model: SegmentationModel,
    *,
    threshold: float | None = None,
    tta: str = "none",
    others: Sequence[SegmentationModel] = (),
    tile: int | str | None = None,
    tile_overlap: int | None = None,
    **settings: Any,
) -> Predicts:
    """What predicts for a person to look at: a `Predictor`, or an `Averaged` where there are several answers.

    Args:
        model: the model.
        threshold: the lowest score that is kept; None takes an instance model's own `shown_threshold`.
        tta: see `predict`.
        others: see `predict`.
        tile: see `predict`.
        tile_overlap: see `predict`.
        settings: as `Predictor` takes them.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    given["threshold"] = shown_from(model) if threshold is None else threshold
    several = tta != "none" or bool(others)
    wrong = [name for name in given if several and name in ("overlap", "stuff_area")]
    if wrong:
        raise KirieError(f"{wrong[0]} is for one panoptic model; with tta or others, leave it out.")

    def built(**changes: Any) -> Predicts:
        chosen = given | changes
        return Averaged([model, *others], tta=tta, **chosen) if several else Predictor(model, **chosen)

    whole, tiles = built(), TileSize.wished([model, *others], tile, tile_overlap)
    if tiles is None:
        return whole
    apart: dict[str, dict[str, Any]] = {"semantic": {"scores": True, "cleanup": False}, "panoptic": {"stuff_area": 0}}
    return Tiled(
        whole,
        built(**apart[model.task]) if model.task in apart else whole,
        tiles,
        cleanup=model.cleanup if model.task == "semantic" else None,
        stuff_area=whole.model.settings.stuff_area if isinstance(whole.model, PanopticFPN) else 0,
    )
