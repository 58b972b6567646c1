"""The commands about architectures and other projects' weights: import, load, models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kirie.errors import KirieError

if TYPE_CHECKING:
    from kirie.models.contract import SegmentationModel
    from kirie.weights.releases import Release
    from kirie.weights.translation import Translation

Out = Annotated[
    Path | None,
    typer.Option(
        "--as", metavar="OUT", help="The .safetensors file to write (default: by the file's or release's name)."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT where it exists.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Set an argument that the file cannot tell, such as align_corners=true, or classes=[sky, sea].",
    ),
]


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Another project's checkpoint.")],
    out: Out = None,
    changes: Settings = None,
    release: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which public release the file is, as `kirie load` lists them.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring in another project's checkpoint.

    Recognises whose it is by its entries, converts it, and writes one model file. Nothing in it is executed.
    """
    _check_place(out, file, overwrite=overwrite)
    from kirie.weights.load import import_checkpoint

    model, translation = import_checkpoint(file, changes=changes or (), release=release)
    _write(model, translation, out, file, overwrite=overwrite)


def load(
    name: Annotated[
        str | None, typer.Argument(metavar="RELEASE", help="A public release; without it, all are listed.")
    ] = None,
    out: Out = None,
    changes: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Fetch a public release and make a model file of it.

    Without a name, lists the releases that kirie knows, with their classes, published scores and licences.
    """
    from kirie.weights.releases import RELEASES, named

    if name is None:
        _list_releases(RELEASES)
        return
    release = named(name)
    _check_place(out, None, overwrite=overwrite)
    if release.url is None:
        raise KirieError(
            f"{release.page} offers {name} only by hand: fetch {release.file} there, then run "
            f"`kirie import {release.file} --release {name}`."
        )
    place = out or Path(f"{name.rpartition('/')[2]}.safetensors")
    _check_place(place, None, overwrite=overwrite)
    from tempfile import TemporaryDirectory

    from kirie.weights.download import download

    with TemporaryDirectory(prefix="kirie-") as folder:
        file = Path(folder, release.file)
        try:
            download(release.url, file, sha256=release.sha256)
        except KirieError as error:
            raise KirieError(
                f"{error} Or fetch {release.url} on another machine and run "
                f"`kirie import {release.file} --release {name}`."
            ) from error
        from kirie.weights.load import import_checkpoint

        model, translation = import_checkpoint(file, changes=changes or (), release=name)
        _write(model, translation, place, file, overwrite=overwrite)


def models(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAMES...]", help="Which; all by default.")] = None,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="List the recipes that come with kirie; with NAMES, print their YAML.")
    ] = False,
    size: Annotated[str, typer.Option(metavar="PIXELS|HxW", help="The picture that is counted for.")] = "512",
    classes: Annotated[int, typer.Option(help="How many classes.")] = 21,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run each on this CPU: time, and memory of weights and tensors.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the architectures, or the recipes.

    Task, parameters, operations, how many public releases load, and when to choose each. All with their default
    arguments; GFLOPs count a multiplication with its addition as one, as papers do.
    """
    if recipes:
        _show_recipes(names or [], as_json=as_json)
        return
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", size)
    if match is None:
        raise KirieError(f"A size is a number of pixels such as 512, or height x width such as 512x1024; got {size!r}.")
    from kirie.models import MODELS
    from kirie.models.overview import describe
    from kirie.progress import tracked
    from kirie.terminal import json_text, print_table
    from kirie.weights.releases import RELEASES

    pixels = (int(match[1]), int(match[2] or match[1]))
    chosen = tracked(names or list(MODELS), "counting and measuring" if measure else "counting")
    facts = [describe(name, size=pixels, classes=classes, measured=measure) for name in chosen]
    public = {f.name: sum(row.architecture == f.name for row in RELEASES.values()) for f in facts}
    if as_json:
        rows = [{**f.to_dict(), "public_weights": public[f.name]} for f in facts]
        print(json_text({"size": pixels, "classes": classes, "models": rows}))
        return
    print_table(
        [
            {"model": f.name, "task": f.task, "million parameters": f.parameters / 1e6, "GFLOPs": f.gflops}
            | ({"CPU ms": f.milliseconds, "MB": f.megabytes} if measure else {})
            | {"public weights": public[f.name]}
            for f in facts
        ],
        digits=1,
    )
    print(f"\nAt {pixels[0]} x {pixels[1]} pixels and {classes} classes, with default arguments. When to choose which:")
    width = max(len(f.name) for f in facts)
    for f in facts:
        print(f"{f.name.ljust(width)}  {f.advice}")


def _show_recipes(names: list[str], *, as_json: bool) -> None:
    """Prints the list of recipes, or the YAML of those named."""
    from kirie.recipe_zoo import recipe_rows, recipe_text
    from kirie.terminal import json_text, print_table

    if names:
        print("\n".join(recipe_text(name) for name in names), end="")
        return
    rows = recipe_rows()
    if as_json:
        print(json_text({"recipes": rows}))
        return
    shown = ("recipe", "title", "task", "model", "score")
    print_table([{name: row[name] for name in shown} for row in rows])
    print("\nTrain by one: kirie train NAME --set data.path=...; print one to edit it: kirie models --recipes NAME.")
    print("Data that they expect, each in its data.path:")
    for data in dict.fromkeys(row["data"] for row in rows):
        places = {f"{row['recipe'].partition('/')[0]} ({row['task']})" for row in rows if row["data"] == data}
        print(f"- {', '.join(sorted(places))}: {data}")
    print("Settings of other projects, whose score it is; what differs is told in the recipe:")
    for row in rows:
        if row["counterpart"]:
            print(f"- {row['recipe']}: {row['counterpart']}")
    print(
        "Scores, on the val pictures, are those of "
        + "; ".join(dict.fromkeys(r["source"] for r in rows if r["source"]))
    )


def _check_place(out: Path | None, file: Path | None, *, overwrite: bool) -> None:
    """Raises a KirieError when a model file may not be written there; before any work is done."""
    if out is None:
        return
    if out.suffix != ".safetensors":
        raise KirieError(f"A model file ends in .safetensors, got {out}.")
    if out.exists() and file is not None and file.exists() and out.samefile(file):
        raise KirieError(f"{out} is the checkpoint itself; name another file by --as.")
    if out.exists() and not overwrite:
        raise KirieError(f"{out} exists; name another file by --as, or replace it by --overwrite.")


def _write(
    model: SegmentationModel, translation: Translation, out: Path | None, file: Path, *, overwrite: bool
) -> None:
    """Saves a model and prints how it came about."""
    from kirie.models.file import save

    stem = re.sub(r"(\.(pth|pt|bin|tar|pkl|safetensors|ckpt))+$", "", file.name)
    if stem in ("model", "pytorch_model"):  # Hugging Face's name for every file: the folder's tells more
        stem = file.resolve().parent.name or stem
    place = out or Path(f"{(translation.release or stem).rpartition('/')[2]}.safetensors")
    _check_place(place, file, overwrite=overwrite)
    save(model, place)
    for line in _account(translation, file):
        print(line)
    print(f"{translation.architecture}, {len(model.classes)} classes, {model.in_channels} channels: {place}")


def _account(translation: Translation, file: Path) -> Iterator[str]:
    """What was recognised, assumed and left out, a line each."""
    from kirie import class_lists

    yield f"recognised {translation.architecture} in the layout of {translation.publisher}"
    yield "arguments: " + ", ".join(f"{name}={json.dumps(value)}" for name, value in translation.arguments.items())
    known = next((name for name, value in vars(class_lists).items() if value == translation.classes), None)
    if isinstance(translation.classes, int):
        yield "classes: numbered, since the file does not name them; --set classes=[...] does"
    else:
        names = translation.classes.names
        yield f"classes: {', '.join(names[:6])}{'...' if len(names) > 6 else ''}" + (f" ({known})" if known else "")
    for name, words in translation.assumed.items():
        yield f"assumed {name}: {words.rstrip('.')} (otherwise: --set {name}=...)"
    reasons: dict[str, list[str]] = {}
    for name, reason in translation.dropped.items():
        reasons.setdefault(reason, []).append(f"{name if name.isprintable() else ascii(name):.80}")
    for reason, names_left in reasons.items():
        more = f" and {len(names_left) - 3} more" if len(names_left) > 3 else ""
        yield f"left out {', '.join(names_left[:3])}{more}: {reason}"
    yield from _terms(translation, file)


def _terms(translation: Translation, file: Path) -> Iterator[str]:
    """Which public release it is or may be, and what is known of the terms of its weights."""
    from kirie.weights.releases import RELEASES, alike

    if translation.release is not None:
        row = RELEASES[translation.release]
        yield f"release: {translation.release}, {row.score_words()}"
        yield f"licence of the weights: {row.licence}"
        if row.note:
            yield f"note: {row.note}"
        return
    near = alike(translation)
    if near:
        called = [name for name, row in near.items() if row.is_called(file)]
        if called:
            yield f"by its name it may be {called[0]}, or one that you trained; if it is, say --release {called[0]}"
        else:
            yield f"it has the form of {', '.join(near)}; if it is one of these, say so by --release NAME"
        for licence in dict.fromkeys(row.licence for row in near.values()):
            yield f"licence of these weights and of what was trained from them: {licence}"


def _list_releases(releases: dict[str, Release]) -> None:
    from kirie.terminal import print_table

    print_table(
        [
            {
                "release": name,
                "model": row.architecture,
                "classes": row.count,
                "data": row.data,
                "published mIoU": row.score,
                "fetched": "by kirie" if row.url else "by hand",
            }
            for name, row in releases.items()
        ],
        digits=1,
    )
    print("\nScores are the publishers' own, each by its own way of testing. Licences of the weights:")
    for licence in dict.fromkeys(row.licence for row in releases.values()):
        under = sorted({name.partition("/")[0] for name, row in releases.items() if row.licence == licence})
        print(f"- {', '.join(under)}: {licence}")
