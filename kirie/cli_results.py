"""The commands that measure a model and tune it on labelled pictures: evaluate, tune; and how a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kirie.cli_data import Data, FolderChanges, typed_settings
from kirie.errors import KirieError
from kirie.lookup import see_own_modules
from kirie.terminal import json_text, print_table, shown

if TYPE_CHECKING:
    from kirie.models.contract import SegmentationModel

ModelFile = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A .safetensors model file, the folder of a run, or an exported model.")
]
MODEL_END = ".safetensors"
Task = Annotated[
    str | None,
    typer.Option(help="instance: each region of a semantic model's map is an object, and those that touch are parted."),
]
Tta = Annotated[
    str,
    typer.Option(help="Average over views of each picture: flip (left and right), flips, turns (all eight) or scales."),
]
Others = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="MODEL", help="Average with another model; may be given more than once."),
]
NoCleanup = Annotated[
    bool, typer.Option("--no-cleanup", help="Leave out the clean-up of the map that the model file asks for.")
]
Runtime = Annotated[
    str,
    typer.Option(
        help="torch, openvino, onnx, or auto: the fastest of the model's own exports beside it, as measured when they "
        "were proved."
    ),
]
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
    task: Task = None,
    tta: Tta = "none",
    others: Others = None,
    no_cleanup: NoCleanup = False,
    device: Device = "auto",
    runtime: Runtime = "auto",
    architecture: Architecture = None,
) -> None:
    """Measure a model on a data set.

    Prints a table, and writes a report with the best and the worst pictures.
    """
    from kirie.models.file import model_path, model_paths

    path, *folds = map(model_path, model_paths(model))
    read = partial(load_model, task=task, runtime=runtime, device=device)
    loaded = read(path, architecture, no_cleanup=no_cleanup)
    more = [read(other, architecture, no_cleanup=no_cleanup) for other in folds]
    more += [read(other) for other in others or ()]
    limits = {"threshold": threshold, "max_detections": max_detections, "tta": tta, "others": more}
    show_evaluation(
        loaded,
        str(model),
        data,
        split,
        out or (model if folds else path.parent),
        device,
        as_json=as_json,
        changes=changes,
        limits=limits,
        folds=bool(folds),
    )


def show_evaluation(
    model: SegmentationModel,
    name: str,
    data: Path,
    split: str | None,
    out: Path,
    device: str,
    *,
    as_json: bool,
    changes: Sequence[str] | None = None,
    limits: Mapping[str, Any] | None = None,
    folds: bool = False,
) -> None:
    """Measures a model, or with `folds` those of a k-fold training, writes its report and prints the numbers."""
    from kirie.prediction.evaluate import evaluate as measure
    from kirie.prediction.evaluate import folder_settings, learned_from, open_for

    dataset = open_for(model, data, split, typed_settings(data, changes, folder_settings(model)))
    if folds and learned_from(model, data) and getattr(dataset, "split", None) != "test":
        raise KirieError(
            f"All but one of the models in {name} have learned from each of these pictures, so that a score on them "
            f"would flatter: {Path(name) / 'folds.csv'} has what each was measured at on its own part. Measure the "
            "ensemble on a test split (--split test) or on other data."
        )
    report = measure(model, dataset, out=out, device=device, name=name, **(limits or {}))
    chosen = getattr(dataset, "split", None)
    if as_json:
        facts = {"model": name, "data": str(data), "split": chosen, "pictures": len(dataset), **report.to_dict()}
        print(json_text(facts))
        return
    print(f"{data}: {len(dataset)} pictures ({f'split {chosen}' if chosen else 'all there are'})\n")
    print_table(report.rows())
    print("\n" + "   ".join(f"{name} {shown(value)}" for name, value, _ in report.headline()))
    print(report.convention)
    print(f"report: {out / 'report.html'}")


def tune(
    model: ModelFile,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="The data set (default: the one the model was trained on).")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="What is to be best: iou or dice of the foreground, miou, boundary, or matching of the objects that "
            "the map is taken apart into (predict --task instance)."
        ),
    ] = "iou",
    split: Annotated[str, typer.Option(help="What to look at: val or train, never test.")] = "val",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be kept.")] = False,
    device: Device = "auto",
) -> None:
    """Find a semantic model's threshold and clean-up.

    They are kept in the model file, so that evaluate and predict repeat them; tune.png shows the metric by threshold.
    """
    from kirie.prediction.tune import tune as search

    found = search(model, data, metric=metric, split=split, device=device, write=not dry_run)
    print(f"{found.pictures} pictures of {split}, {found.tried} settings tried")
    print(f"{metric}: {found.before:.4f} before, {found.after:.4f} after")
    for name, value in found.settings.words().items():
        print(f"  {name} {value}")
    print("nothing was written" if dry_run else f"kept in {model}; --no-cleanup leaves it out")


def load_model(
    model: Path,
    architecture: str | None = None,
    *,
    task: str | None = None,
    no_cleanup: bool = False,
    runtime: str = "auto",
    device: str = "auto",
) -> SegmentationModel:
    """The model of a file or a run's folder, for a task, with or without the clean-up that it asks for.

    Args:
        model: the file, an exported one too, or the folder.
        architecture: the user's own class, by its name.
        task: see `as_task`.
        no_cleanup: leave the clean-up out.
        runtime: see `kirie.runtimes.load`.
        device: on which it is going to predict; runtimes other than PyTorch have the CPU alone.
    """
    from kirie.models import model_class
    from kirie.models.parts.region_objects import as_task
    from kirie.runtimes.load import load as read
    from kirie.runtimes.load import picked

    file = picked(model, runtime, device)
    if architecture is None:
        loaded = read(file)
    else:
        see_own_modules()
        loaded = read(file, architecture=model_class(architecture, own_code=True))
    if no_cleanup:
        loaded.cleanup = None
    return as_task(loaded, task)
