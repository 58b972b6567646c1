"""The command line: parse, call, print. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kirie.cli_data import DataTask, convert, inspect
from kirie.cli_demo import demo
from kirie.cli_export import export
from kirie.cli_predict import predict
from kirie.cli_results import Device, evaluate, tune
from kirie.cli_weights import import_, load, models
from kirie.errors import KirieError
from kirie.lookup import see_own_modules
from kirie.terminal import complain

app = typer.Typer(
    name="kirie",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.ENTRY=VALUE", help="Set an entry of the recipe: train.epochs=40."),
]


def main() -> None:
    """Runs the command line; a fault ends in one sentence and a non-zero exit code, never in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot write must not stop the work
            stream.reconfigure(errors="backslashreplace")
    try:
        app()  # ends by sys.exit: 0, 2 for wrong words, 130 after Ctrl-C, 1 when nobody reads the output any more
    except KirieError as error:
        complain(str(error))
    except MemoryError:
        complain("Not enough memory; try smaller patches, batches or pictures.")
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(1)


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


app.command()(demo)
app.command()(inspect)
app.command()(convert)


@app.command()
def plan(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A data set's folder or file, or package.module:function.")
    ],
    minutes: Annotated[float, typer.Option(help="How long the training may take.")] = 30.0,
    task: DataTask = None,
    model: Annotated[str | None, typer.Option(help="Architecture (default: one that needs no weights).")] = None,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="A new .yaml file for it (default: it is printed).")] = None,
    device: Device = "auto",
) -> None:
    """Plan a training.

    Looks at the data and the machine, times some steps, and writes a recipe that fits both and the time, with the
    reason for each entry beside it.
    """
    from kirie.files import write_text
    from kirie.training.planned import plan as planned

    see_own_modules()
    if out is not None and out.suffix.lower() not in (".yaml", ".yml"):
        raise KirieError(f"A recipe is a .yaml file, got {out}.")
    if out is not None and out.exists():
        raise KirieError(f"{out} is there already: choose another place by --out, or take it away.")
    found = planned(data, minutes=minutes, task=task, model=model, changes=changes or [], device=device).text()
    if out is None:
        print(found, end="")
        return
    write_text(out, found)
    print(f"recipe: {out}\ntrain by it: kirie train {shlex.quote(str(out))}")


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE|DATA",
            help="A recipe (.yaml, or a name of `kirie models --recipes`), a data set's folder, or package.module:f.",
        ),
    ],
    model: Annotated[str | None, typer.Option(help="Architecture, in place of the recipe's.")] = None,
    minutes: Annotated[float, typer.Option(help="For a data set: how long the training may take.")] = 30.0,
    folds: Annotated[
        int | None, typer.Option(help="Train so many models, each measured on another part of the pictures.")
    ] = None,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder (default: in runs, by the data's name).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in the folder stopped.")] = False,
    device: Device = "auto",
) -> None:
    """Train a model.

    By a recipe, or on a data set by a recipe that is planned for it first (see `kirie plan`) and told.
    """
    from kirie.training.fit import train as fit
    from kirie.training.folds import train_folds

    see_own_modules()
    given: dict[str, Any] = {
        "minutes": minutes, "model": model, "changes": changes or [], "out": out, "resume": resume, "device": device
    }  # fmt: skip
    options = {"--model": model, "--minutes": None if minutes == 30 else f"{minutes:g}", "--folds": folds}
    options["--device"] = None if device == "auto" else device
    words = ["kirie", "train", str(data), *(word for change in changes or [] for word in ("--set", change))]
    words += [word for option, value in options.items() if value is not None for word in (option, str(value))]
    if folds is not None:
        all_folds = train_folds(data, folds, **given)
        if not all_folds.finished:
            _tell_stopped(words, all_folds.folder)
        for name, (mean, deviation) in all_folds.spread().items():
            print(f"{name:<24} {mean:.4f} +- {deviation:.4f}")
        print(f"models, an ensemble together: {all_folds.folder}\nnumbers: {all_folds.folder / 'folds.csv'}")
        return
    run = fit(data, **given)
    if not run.finished:
        _tell_stopped(words, run.folder)
    no_score = "no score could be measured: there is nothing to find in the pictures that it is measured on"
    print(no_score if run.best is None else f"best score {run.best:.4f}")
    print(f"model: {run.model or 'none was kept'}\nhistory: {run.folder / 'history.png'}")


def _tell_stopped(words: list[str], folder: Path) -> NoReturn:
    """Says how a training that was stopped goes on."""
    print(f"Stopped; everything is saved. Go on with: {shlex.join([*words, '--out', str(folder), '--resume'])}")
    raise typer.Exit(130)


app.command()(evaluate)
app.command()(predict)
app.command()(tune)
app.command()(export)
app.command("import")(import_)
app.command()(load)
app.command()(models)


if __name__ == "__main__":
    main()
