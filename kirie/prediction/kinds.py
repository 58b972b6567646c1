"""The written table of what results can be saved as, and for which task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kirie.errors import KirieError
from kirie.prediction.object_files import check_data_yaml, coco_results, save_cutouts, yolo_labels
from kirie.prediction.object_table import object_table
from kirie.prediction.picture_files import Opened, each_alone, save_ids, save_labels, save_overlay, save_scores


@dataclass(frozen=True)
class Kind:
    """A row of the table.

    Attributes:
        tasks: those whose results can be saved so.
        files: what is written into the folder of the results, `{name}` being each picture's; a folder stands for all
            that it holds.
        opened: gives what writes each picture's part, until the run ends.
        check: raises a KirieError where files in the folder of the results must not be replaced, beside the pictures
            and labels that `predict_files` looks after.
    """

    tasks: tuple[str, ...]
    files: tuple[str, ...]
    opened: Opened
    check: Callable[[Path], None] = lambda out: None


_ALL = ("semantic", "instance", "panoptic")
_OBJECTS = ("instance",)

KINDS: dict[str, Kind] = {
    "labels": Kind(_ALL, ("{name}.png",), each_alone(save_labels)),
    "overlay": Kind(_ALL, ("{name}_overlay.jpg",), each_alone(save_overlay)),
    "scores": Kind(("semantic",), ("{name}_scores.npz",), each_alone(save_scores)),
    "ids": Kind(_OBJECTS, ("{name}_ids.png", "{name}_ids.tif"), each_alone(save_ids)),
    "csv": Kind(_OBJECTS, ("objects.csv", "counts.csv"), object_table),
    "coco": Kind(_OBJECTS, ("results.json", "images.json"), coco_results),
    "yolo": Kind(_OBJECTS, ("{name}.txt", "data.yaml"), yolo_labels, check_data_yaml),
    "cutouts": Kind(_OBJECTS, ("cutouts",), each_alone(save_cutouts)),
}
USUAL = {"semantic": ("labels", "overlay"), "instance": ("overlay", "csv"), "panoptic": ("labels", "overlay")}


def check_kinds(kinds: Sequence[str], task: str | None = None) -> None:
    """Raises a KirieError when there are no kinds to save, one is no row of `KINDS`, or does not serve the task."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise KirieError(f"Results can be saved as {', '.join(KINDS)}; got {', '.join(unknown) or 'nothing'}.")
    wrong = [kind for kind in kinds if task is not None and task not in KINDS[kind].tasks]
    if wrong:
        served = ", ".join(name for name, kind in KINDS.items() if task in kind.tasks)
        raise KirieError(f"Results of a model for task {task!r} cannot be saved as {', '.join(wrong)}; use {served}.")
