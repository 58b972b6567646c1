"""The commands that run a model: evaluate, predict."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kirie.cli_data import Data, FolderChanges, typed_settings
from kirie.terminal import complain, json_text, print_table, shown

if TYPE_CHECKING:
    from kirie.models.contract import SegmentationModel

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors model file or the folder of a run.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps...")]
Architecture = Annotated[
    str | None, typer.Option(metavar="PACKAGE.MODULE:CLASS", help="Your own class, for a model saved from one.")
]
Split = Annotated[
    str | None,
    typer.Option(
        help="train, val or test; the default is test, else val, of the folders or as drawn for the model's training "
        "when that was on these data; else everything."
    ),
]


def evaluate(
    model: ModelFile,
    data: Data,
    split: Split = None,
    out: Annotated[
        Path | None, typer.Option(help="Where report.html and report.json go (default: beside the model).")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="The lowest score of objects that are matched and counted; AP uses all (default: the model's own)."
        ),
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(help="The most objects of a class and picture that AP looks at (default: 100, as COCO's)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    changes: FolderChanges = None,
    device: Device = "auto",
    architecture: Architecture = None,
) -> None:
    """Measure a model on a data set.

    Prints a table, and writes a report with the best and the worst pictures.
    """
    limits = {"threshold": threshold, "max_detections": max_detections}
    show_evaluation(
        model, data, split, out, device, as_json=as_json, changes=changes, architecture=architecture, limits=limits
    )


def show_evaluation(
    model: Path,
    data: Path,
    split: str | None,
    out: Path | None,
    device: str,
    *,
    as_json: bool,
    changes: Sequence[str] | None = None,
    architecture: str | None = None,
    limits: Mapping[str, Any] | None = None,
) -> None:
    """Measures a model, writes its report and prints the numbers."""
    from kirie.models.file import model_path
    from kirie.prediction.evaluate import evaluate as measure
    from kirie.prediction.evaluate import folder_settings, open_for

    path = model_path(model)
    loaded = _load(path, architecture)
    dataset = open_for(loaded, data, split, typed_settings(data, changes, folder_settings(loaded)))
    place = out or path.parent
    report = measure(loaded, dataset, out=place, device=device, name=str(model), **(limits or {}))
    chosen = getattr(dataset, "split", None)
    if as_json:
        facts = {"model": str(model), "data": str(data), "split": chosen, "pictures": len(dataset), **report.to_dict()}
        print(json_text(facts))
        return
    print(f"{data}: {len(dataset)} pictures ({f'split {chosen}' if chosen else 'all there are'})\n")
    print_table(report.rows())
    print("\n" + "   ".join(f"{name} {shown(value)}" for name, value, _ in report.headline()))
    print(report.convention)
    print(f"report: {place / 'report.html'}")


def predict(
    model: ModelFile,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Files, folders, or patterns in quotes.")],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    save: Annotated[
        str | None,
        typer.Option(
            help="What to write, with commas: labels, overlay; of semantic models scores, of instance models "
            "ids, csv, coco, yolo, cutouts. The default is labels,overlay, and overlay,csv of instance models.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="The lowest score of objects (default: the model's own)."),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Keep only objects of these classes: person,car.")] = None,
    max_detections: Annotated[
        int | None, typer.Option(help="The most objects of a picture, the surest ones (default: the model's limit).")
    ] = None,
    image_ids: Annotated[
        Path | None,
        typer.Option(
            metavar="COCO.json", help="A COCO file with the ids of images and categories that the coco results get."
        ),
    ] = None,
    device: Device = "auto",
    architecture: Architecture = None,
) -> None:
    """Predict pictures.

    A bad file is reported and the others go on; the exit code is 1 then.
    """
    names = None if classes is None else _words(classes)
    choice = {"threshold": threshold, "classes": names, "max_detections": max_detections}
    raise typer.Exit(run_prediction(model, images, out, save, device, architecture, choice=choice, image_ids=image_ids))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def run_prediction(
    model: Path,
    images: Sequence[str],
    out: Path,
    save: str | None,
    device: str,
    architecture: str | None = None,
    *,
    choice: Mapping[str, Any] | None = None,
    image_ids: Path | None = None,
) -> int:
    """Predicts pictures into a folder and says how many; 1 when some failed, else 0."""
    from kirie.prediction.kinds import check_kinds
    from kirie.prediction.predict_files import find_images, predict_files
    from kirie.prediction.predictor import shown_predictor

    kinds = None if save is None else _words(save)
    if kinds is not None:
        check_kinds(kinds)  # complain about what was typed before loading anything
    find_images(images)
    loaded = _load(model, architecture)
    predictor = shown_predictor(loaded, device=device, scores="scores" in (kinds or ()), **(choice or {}))
    done, failed = 0, 0
    for outcome in predict_files(predictor, images, out, kinds=kinds, images=image_ids):
        if outcome.error is None:
            done += 1
        else:
            failed += 1
            complain(outcome.error)
    print(f"{done} predicted into {out}" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


def see_own_modules() -> None:
    """Lets `package.module:Class` be found in the working directory too, as `python -m` does, but after all else."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _load(model: Path, architecture: str | None) -> SegmentationModel:
    from kirie.models import model_class
    from kirie.models.file import load as read

    if architecture is None:
        return read(model)
    see_own_modules()
    return read(model, architecture=model_class(architecture, own_code=True))
