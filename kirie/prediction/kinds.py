"""The written table of what results can be saved as, per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kirie.errors import KirieError
from kirie.prediction.geojson_files import save_geojson
from kirie.prediction.object_files import check_data_yaml, coco_results, save_cutouts, yolo_labels
from kirie.prediction.object_table import object_table
from kirie.prediction.panoptic_files import NAME, coco_panoptic_results, of_things
from kirie.prediction.picture_files import (
    Opened,
    each_alone,
    save_ids,
    save_labels,
    save_overlay,
    save_scores,
    save_zarr,
)


@dataclass(frozen=True)
class Kind:
    """How results of one task are saved as one kind.

    Attributes:
        files: what is written into the folder of the results, `{name}` being each picture's; a folder stands for all
            that it holds.
        opened: gives what writes each picture's part, until the run ends.
        check: raises a KirieError where files in the folder of the results must not be replaced, beside the pictures
            and labels that `predict_files` looks after.
        large: what is written in place of `files` of a picture larger than memory; () where that cannot be.
    """

    files: tuple[str, ...]
    opened: Opened
    check: Callable[[Path], None] = lambda out: None
    large: tuple[str, ...] | None = None


_LABELS = Kind(("{name}.png",), each_alone(save_labels), large=("{name}.tif",))
_ZARR = Kind(("{name}.zarr",), each_alone(save_zarr))
_OVERLAY = Kind(("{name}_overlay.jpg",), each_alone(save_overlay))
_SCORES = Kind(("{name}_scores.npz",), each_alone(save_scores), large=())
_MAPS = {"labels": _LABELS, "zarr": _ZARR, "overlay": _OVERLAY}
_OBJECTS = {
    "ids": Kind(("{name}_ids.png", "{name}_ids.tif"), each_alone(save_ids)),
    "csv": Kind(("objects.csv", "counts.csv"), object_table),
    "coco": Kind(("results.json", "images.json"), coco_results),
    "yolo": Kind(("{name}.txt", "data.yaml"), yolo_labels, check_data_yaml),
    "geojson": Kind(("{name}.geojson",), each_alone(save_geojson)),
    "cutouts": Kind(("cutouts",), each_alone(save_cutouts)),
}
_SEGMENTS = {name: replace(kind, opened=of_things(kind.opened)) for name, kind in _OBJECTS.items()} | {
    "coco": Kind(
        (f"{NAME}/{{name}}.png", f"{NAME}.json"), coco_panoptic_results, large=(f"{NAME}/{{name}}.tif", f"{NAME}.json")
    )
}

KINDS: dict[str, dict[str, Kind]] = {
    "semantic": {**_MAPS, "scores": _SCORES},
    "instance": {**_MAPS, **_OBJECTS},
    "panoptic": {**_MAPS, **_SEGMENTS},
}
USUAL = {"semantic": ("labels", "overlay"), "instance": ("overlay", "csv"), "panoptic": ("overlay", "coco")}


def check_kinds(kinds: Sequence[str], task: str | None = None) -> None:
    """Raises a KirieError when there are no kinds to save, one is no kind of `KINDS`, or does not serve the task."""
    known = dict.fromkeys(kind for served in KINDS.values() for kind in served)
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise KirieError(f"Results can be saved as {', '.join(known)}; got {', '.join(unknown) or 'nothing'}.")
    wrong = [] if task is None else [kind for kind in kinds if kind not in KINDS[task]]
    if task is not None and wrong:
        raise KirieError(
            f"Results of a model for task {task!r} cannot be saved as {', '.join(wrong)}; use {', '.join(KINDS[task])}."
        )
