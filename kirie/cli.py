"""The command line: parse, call, print. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kirie.cli_data import Data, FolderChanges, convert, inspect, show_inspection, typed_settings
from kirie.cli_weights import import_, load, models
from kirie.errors import KirieError
from kirie.terminal import json_text, print_table, shown

if TYPE_CHECKING:
    from kirie.models.contract import SegmentationModel

app = typer.Typer(
    name="kirie",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors model file or the folder of a run.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps...")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.ENTRY=VALUE", help="Set an entry of the recipe: train.epochs=40."),
]
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


def main() -> None:
    """Runs the command line; a fault ends in one sentence and a non-zero exit code, never in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot write must not stop the work
            stream.reconfigure(errors="backslashreplace")
    try:
        app()  # ends by sys.exit: 0, 2 for wrong words, 130 after Ctrl-C, 1 when nobody reads the output any more
    except KirieError as error:
        _complain(str(error))
    except MemoryError:
        _complain("Not enough memory; try smaller patches, batches or pictures.")
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(1)


def _complain(message: str) -> None:
    whole = "\n" in message or message.endswith((".", "?", "!"))
    print(f"Error: {message}" if whole else f"Error: {message}.", file=sys.stderr)


def _tell_version(asked: bool) -> None:
    if asked:
        from kirie import __version__

        print(f"kirie {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Image segmentation: check a data set, train on it, measure, predict."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where data, run and results go.")] = Path("demo"),
    pictures: Annotated[int, typer.Option(help="How many pictures to make.")] = 120,
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures.")] = 52,
    device: Device = "auto",
) -> None:
    """See the whole road in a few minutes.

    Inspects, trains, evaluates and predicts on pictures made on the spot.
    """
    from kirie.demo import make_demo
    from kirie.models.device import pick_device

    pick_device(device)  # complain before anything is written
    data = make_demo(out / "data", pictures=pictures)
    print(f"1/4 {pictures} pictures with coins on brick, grass and gravel: {data}")
    show_inspection(data, None, out / "inspect.png", as_json=False)
    print(f"\n2/4 training a small U-Net for {epochs} epochs")
    run = _demo_training(data, out, epochs, device)
    print("\n3/4 measuring it on the test pictures, which it has not seen")
    _evaluate(run / "model.safetensors", data, "test", run, device, as_json=False)
    print("\n4/4 predicting them")
    failed = _predict(run / "model.safetensors", [str(data / "images" / "test")], out / "cut", "labels,overlay", device)
    _draw_demo(run, data, out / "demo.jpg", device)
    print(f"\nDone. Look in {out} at demo.jpg, run/report.html, run/history.png and the pictures in cut.")
    raise typer.Exit(failed)


def _draw_demo(run: Path, data: Path, place: Path, device: str) -> None:
    """Writes one sheet of test pictures, each with its truth and what the model sees."""
    from kirie.data import open_dataset
    from kirie.files import write_picture
    from kirie.models.file import load
    from kirie.prediction.predictor import Predictor
    from kirie.prediction.sheet import result_sheet

    dataset = open_dataset(data, "test")
    write_picture(place, result_sheet(Predictor(load(run), device=device), dataset, range(min(6, len(dataset)))))


def _demo_training(data: Path, out: Path, epochs: int, device: str) -> Path:
    from kirie.recipe import parse_recipe, read_recipe
    from kirie.training.fit import train

    changes = [
        f"train.epochs={epochs}",
        "model.arguments={width: 16, bias: false, standardise: true}",
        "augment.preset=light",
        "train.loss=ce+dice",
        "train.patch=[160, 160]",
        "train.batch_size=8",
        "train.draws=2",
        "train.learning_rate=3e-3",
        "train.validate_every=13",
        "train.samples_every=13",
    ]
    folder = out / "run"
    if (folder / "recipe.yaml").exists():
        import shutil

        earlier = read_recipe(folder / "recipe.yaml", [f"train.epochs={epochs}"])
        if earlier != parse_recipe({"data": {"path": str(data)}}, changes):
            raise KirieError(f"{folder} holds another run than the demo's, which stays; choose another place by --out.")
        shutil.rmtree(folder)  # what an earlier demo made
    run = train(data, changes=changes, out=folder, device=device)
    if not run.finished or run.model is None:
        raise KirieError("The demo was stopped; run it again.")
    return run.folder


app.command()(inspect)
app.command()(convert)


@app.command()
def train(
    data: Annotated[Path, typer.Argument(metavar="RECIPE|DATA", help="A recipe (.yaml) or the folder of a data set.")],
    model: Annotated[str | None, typer.Option(help="Architecture, in place of the recipe's.")] = None,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder (default: in runs, by the data's name).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in the folder stopped.")] = False,
    device: Device = "auto",
) -> None:
    """Train a model.

    By a recipe, or by the defaults on the folder of a data set.
    """
    if not data.exists():
        raise KirieError(f"There is neither a recipe nor a data folder {data}.")
    if data.is_file() and data.suffix.lower() not in (".yaml", ".yml"):
        raise KirieError(f"{data} is no recipe, which ends in .yaml, and no folder of a data set.")
    from kirie.training.fit import train as fit

    _see_own_modules()
    run = fit(data, model=model, changes=changes or [], out=out, resume=resume, device=device)
    if not run.finished:
        words = ["kirie", "train", str(data), *(word for change in changes or [] for word in ("--set", change))]
        words += ["--model", model] if model else []
        words += ["--device", device] if device != "auto" else []
        again = shlex.join([*words, "--out", str(run.folder), "--resume"])
        print(f"Stopped; everything is saved. Go on with: {again}")
        raise typer.Exit(130)
    print(f"best score {run.best:.4f}" if run.best is not None else "no score could be measured")
    print(f"model: {run.model or 'none was kept'}\nhistory: {run.folder / 'history.png'}")


@app.command()
def evaluate(
    model: ModelFile,
    data: Data,
    split: Split = None,
    out: Annotated[
        Path | None, typer.Option(help="Where report.html and report.json go (default: beside the model).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    changes: FolderChanges = None,
    device: Device = "auto",
    architecture: Architecture = None,
) -> None:
    """Measure a model on a data set.

    Prints a table, and writes a report with the best and the worst pictures.
    """
    _evaluate(model, data, split, out, device, as_json=as_json, changes=changes, architecture=architecture)


def _evaluate(
    model: Path,
    data: Path,
    split: str | None,
    out: Path | None,
    device: str,
    *,
    as_json: bool,
    changes: Sequence[str] | None = None,
    architecture: str | None = None,
) -> None:
    from kirie.models.file import model_path
    from kirie.prediction.evaluate import evaluate as measure
    from kirie.prediction.evaluate import folder_settings, open_for

    path = model_path(model)
    loaded = _load(path, architecture)
    dataset = open_for(loaded, data, split, typed_settings(data, changes, folder_settings(loaded)))
    place = out or path.parent
    report = measure(loaded, dataset, out=place, device=device, name=str(model))
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


@app.command()
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
        typer.Option(help="The lowest score of objects; the default is the model's own, 0.5 unless it says otherwise."),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Keep only objects of these classes: person,car.")] = None,
    max_detections: Annotated[
        int | None, typer.Option(help="The most objects of a picture, the surest ones (default: the model's limit).")
    ] = None,
    image_ids: Annotated[
        Path | None,
        typer.Option(metavar="COCO.json", help="A COCO file with the image ids that the coco results get."),
    ] = None,
    device: Device = "auto",
    architecture: Architecture = None,
) -> None:
    """Predict pictures.

    A bad file is reported and the others go on; the exit code is 1 then.
    """
    keep = None if classes is None else _words(classes)
    choice = {"threshold": threshold, "keep": keep, "most": max_detections}
    raise typer.Exit(_predict(model, images, out, save, device, architecture, choice=choice, image_ids=image_ids))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _predict(
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
    from kirie.prediction.kinds import check_kinds
    from kirie.prediction.predictor import shown_predictor
    from kirie.prediction.save import find_images, predict_files

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
            _complain(outcome.error)
    print(f"{done} predicted into {out}" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


def _see_own_modules() -> None:
    """Lets `package.module:Class` be found in the working directory too, as `python -m` does, but after all else."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _load(model: Path, architecture: str | None) -> SegmentationModel:
    from kirie.models import model_class
    from kirie.models.file import load as read

    if architecture is None:
        return read(model)
    _see_own_modules()
    return read(model, architecture=model_class(architecture, own_code=True))


app.command("import")(import_)
app.command()(load)
app.command()(models)


if __name__ == "__main__":
    main()
