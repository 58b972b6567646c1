"""The commands about data sets: inspect, convert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kirie.errors import KirieError, counted
from kirie.lookup import see_own_modules
from kirie.terminal import json_text

if TYPE_CHECKING:
    from kirie.data.layouts import FolderSettings
    from kirie.prediction.suspects import Suspects

Data = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="The folder of a data set, or a COCO JSON file, or the YAML file of YOLO."),
]
FolderChanges = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="ENTRY=VALUE",
        help="Say how the data's folders are read, as in the data section of a recipe: suffix=_mask, kind=binary.",
    ),
]
DataTask = Annotated[str | None, typer.Option(help="semantic, instance or panoptic; by default what the labels are.")]


def inspect(
    data: Data,
    task: DataTask = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Where to write the contact sheet (default: DATA_sheet.png).")
    ] = None,
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Draw no contact sheet.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="A trained run: names the labels that its model contradicts most, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    changes: FolderChanges = None,
) -> None:
    """Check a data set.

    Tells format, classes, sizes, balance, and every fault of the labels with how to mend it. Ends with exit code 1
    when there are faults. Options of the folders are set as in a recipe's data section, such as --set suffix=_mask or
    --set kind=binary. With --model, labels that a trained model contradicts are named and drawn (DATA_suspects.png).
    """
    name = data.stem if data.is_file() else data.resolve().name
    place = None if no_sheet else sheet or Path(f"{name}_sheet.png")
    settings = typed_settings(data, changes)
    raise typer.Exit(show_inspection(data, task, place, as_json=as_json, settings=settings, model=model))


def show_inspection(
    data: Path,
    task: str | None,
    sheet: Path | None,
    *,
    as_json: bool,
    settings: FolderSettings | None = None,
    model: Path | None = None,
) -> int:
    """Prints what is in a data set and draws its contact sheet; 1 when there are faults, else 0."""
    from kirie.data import open_dataset
    from kirie.data.inspect import inspect_dataset, sheet_samples
    from kirie.drawing import contact_sheet, draw
    from kirie.files import write_picture

    if sheet is not None and sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise KirieError(f"A contact sheet is a .png or .jpg file, got {sheet}.")
    inspection = inspect_dataset(data, task=task, settings=settings)
    if not inspection.images and inspection.faults:
        raise KirieError(inspection.faults[0].what)
    found = inspection.to_dict()
    suspects = None if model is None else _suspects(model, data, settings)
    if suspects is not None:
        found["suspects"] = [asdict(each) for each in suspects.found]
    print(json_text(found) if as_json else "\n".join([*inspection.lines(), *(suspects.lines() if suspects else [])]))
    if suspects is not None and suspects.sheet is not None and sheet is not None:
        place = sheet.with_name(f"{data.stem if data.is_file() else data.resolve().name}_suspects.png")
        write_picture(place, suspects.sheet)
        if not as_json:
            print(f"the first of them, with label and difference: {place}")
    try:
        samples = [] if sheet is None else sheet_samples(open_dataset(data, task=task, settings=settings))
    except KirieError:
        samples = []  # faults too grave to draw anything; they are told above
    if sheet is not None and samples:
        pictures = [(s.name, s.image[..., :3], s.truth) for s in samples]
        cells: list[tuple[str, list[Any]]] = [(name, [image, draw(truth, image)]) for name, image, truth in pictures]
        write_picture(sheet, contact_sheet(cells))
        if not as_json:
            print(f"contact sheet: {sheet}")
    return 0 if inspection.ok else 1


def _suspects(model: Path, data: Path, settings: FolderSettings | None) -> Suspects:
    from kirie.prediction.suspects import find_suspects

    return find_suspects(model, data, settings=settings)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The data set, in any format that kirie reads.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make; a new or an empty one.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="FORMAT", help="masks, ids, coco, coco_panoptic, yolo, voc, cityscapes or ade20k."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="How to read SRC: semantic, instance or panoptic. By default what its labels are, and for its "
            "objects or segments where the format holds nothing else."
        ),
    ] = None,
    draw_splits: Annotated[
        bool,
        typer.Option("--draw-splits", help="Give SRC the splits that the seed draws, where it has none of its own."),
    ] = False,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="coco: polygons in place of run lengths, for the very same masks.")
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Make symbolic links to the pictures of SRC in place of copies.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be converted, in place of stopping.")
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended without asking; DST/fixes.csv lists it all.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    changes: FolderChanges = None,
) -> None:
    """Write a data set in another format, or a mended copy of it.

    Pictures are copied byte for byte, splits stay as they are. What the new format cannot hold is told, a line each.
    DST appears when all of it is written; nothing is ever written over. Ends with exit code 1 where pictures were left
    out by --skip-bad.

    --fix makes ids that are no class void, takes out objects of a few stray pixels and those stated twice, and leaves
    out what cannot be read and, of pictures that two splits have, the one to learn from. SRC stays as it is. Without
    --to the copy has a format that holds the same.

    masks: index masks in folders. ids: object ids in folders, with masks beside them for several classes. coco:
    instances with run lengths. coco_panoptic: segments of things and stuff. yolo: polygons and data.yaml. voc: class
    and object masks with lists. cityscapes and ade20k: for classes of theirs.
    """
    from kirie.conversion.convert import convert as write

    see_own_modules()
    done = write(
        source,
        destination,
        to,
        task=task,
        settings=typed_settings(source, changes),
        draw_splits=draw_splits,
        polygons=polygons,
        link=link,
        skip_bad=skip_bad,
        fix=fix,
    )
    if as_json:
        print(json_text({**asdict(done), "path": str(destination), "pictures": done.pictures}))
    else:
        splits = ", ".join(f"{split} {count}" for split, count in done.splits.items() if split)
        what = counted(done.pictures, "picture") + (f" ({splits})" if splits else "")
        what += f", {counted(done.objects, 'object')}" if done.objects else ""
        print(f"{what} as {done.title}: {destination}" + (f", {len(done.skipped)} left out" if done.skipped else ""))
        if fix:
            print(f"{counted(len(done.fixes), 'fix', 'fixes')}: {destination / 'fixes.csv'}")
    raise typer.Exit(1 if done.skipped and not fix else 0)


def typed_settings(
    data: Path, changes: Sequence[str] | None, settings: FolderSettings | None = None
) -> FolderSettings | None:
    """How to read the folders of `data`: these settings, with the changes typed."""
    if not changes:
        return settings
    from kirie.recipe import parse_recipe

    section = {} if settings is None else asdict(settings)
    entries = [f"data.{change.removeprefix('data.')}" for change in changes]
    return parse_recipe({"data": {**section, "path": str(data)}}, entries, source="--set").data.folder_settings()
