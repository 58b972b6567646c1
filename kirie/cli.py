"""The command line: parse, call, print. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from kirie.cli_data import convert, inspect
from kirie.cli_demo import demo
from kirie.cli_results import Device, evaluate, predict, see_own_modules, tune
from kirie.cli_weights import import_, load, models
from kirie.errors import KirieError
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
def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE|DATA",
            help="A recipe (.yaml, or a name of `kirie models --recipes`), a data set's folder, or package.module:f.",
        ),
    ],
    model: Annotated[str | None, typer.Option(help="Architecture, in place of the recipe's.")] = None,
    changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder (default: in runs, by the data's name).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in the folder stopped.")] = False,
    device: Device = "auto",
) -> None:
    """Train a model.

    By a recipe, or by the defaults on the folder of a data set.
    """
    from kirie.training.fit import train as fit

    see_own_modules()
    run = fit(data, model=model, changes=changes or [], out=out, resume=resume, device=device)
    if not run.finished:
        words = ["kirie", "train", str(data), *(word for change in changes or [] for word in ("--set", change))]
        words += ["--model", model] if model else []
        words += ["--device", device] if device != "auto" else []
        again = shlex.join([*words, "--out", str(run.folder), "--resume"])
        print(f"Stopped; everything is saved. Go on with: {again}")
        raise typer.Exit(130)
    no_score = "no score could be measured: there is nothing to find in the pictures that it is measured on"
    print(no_score if run.best is None else f"best score {run.best:.4f}")
    print(f"model: {run.model or 'none was kept'}\nhistory: {run.folder / 'history.png'}")


app.command()(evaluate)
app.command()(predict)
app.command()(tune)
app.command("import")(import_)
app.command()(load)
app.command()(models)


if __name__ == "__main__":
    main()
