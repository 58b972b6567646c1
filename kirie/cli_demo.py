"""The command that shows the whole road: demo."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kirie.cli_data import show_inspection
from kirie.cli_predict import one_model, run_prediction
from kirie.cli_results import Device, load_model, show_evaluation
from kirie.errors import KirieError

if TYPE_CHECKING:
    from kirie.recipe import Recipe

# Per task: what is trained, in words; by which recipe; what is written of the predictions.
_TRAININGS = {
    "semantic": ("a small U-Net", "demo/unet", "labels,overlay"),
    "instance": ("a small YOLACT", "demo/yolact", "overlay,csv,cutouts"),
    "panoptic": ("a small Panoptic FPN", "demo/panoptic_fpn", "overlay,coco,csv"),
}


def demo(
    task: Annotated[str, typer.Option(help="semantic (grounds), instance (coins) or panoptic (both).")] = "semantic",
    out: Annotated[Path | None, typer.Option(help="Where data, run and results go (default: demo, demo-TASK).")] = None,
    pictures: Annotated[int, typer.Option(help="How many pictures to make.")] = 120,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
    device: Device = "auto",
) -> None:
    """See the whole road in a few minutes.

    Inspects, trains, evaluates and predicts on pictures made on the spot.
    """
    from kirie.demo import make_demo
    from kirie.models.device import pick_device
    from kirie.recipe import read_recipe
    from kirie.recipe_zoo import recipe_file

    if task not in _TRAININGS:
        raise KirieError(f"The demo has the tasks {', '.join(_TRAININGS)}, got {task!r:.60}.")
    pick_device(device)  # complain before anything is written
    words, name, kinds = _TRAININGS[task]
    out = Path("demo" if task == "semantic" else f"demo-{task}") if out is None else out
    recipe = read_recipe(recipe_file(name), [] if epochs is None else [f"train.epochs={epochs}"])
    data = make_demo(out / "data", pictures=pictures)
    recipe = replace(recipe, data=replace(recipe.data, path=str(data)))
    print(f"1/4 {pictures} pictures with coins on brick, grass and gravel: {data}")
    show_inspection(data, task, out / "inspect.png", as_json=False)
    print(f"\n2/4 training {words} for {recipe.train.epochs} epochs")
    run = _train(recipe, out / "run", device)
    model = run / "model.safetensors"
    print("\n3/4 measuring it on the test pictures, which it has not seen")
    show_evaluation(load_model(model), str(model), data, "test", run, device, as_json=False)
    print("\n4/4 predicting them")
    failed = run_prediction(
        one_model(partial(load_model, model), device), [str(data / "images" / "test")], out / "cut", kinds
    )
    _draw(run, data, task, out / "demo.jpg", device)
    print(f"\nDone. Look in {out} at demo.jpg, run/report.html, run/history.png and the files in cut.")
    raise typer.Exit(failed)


def _draw(run: Path, data: Path, task: str, place: Path, device: str) -> None:
    """Writes one sheet of test pictures, each with its truth and what the model sees."""
    from kirie.data import open_dataset
    from kirie.files import write_picture
    from kirie.models.file import load
    from kirie.prediction.predictor import Predictor, shown_from
    from kirie.prediction.sheet import result_sheet

    dataset = open_dataset(data, "test", task=task)
    model = load(run)
    predictor = Predictor(model, device=device, threshold=shown_from(model))
    write_picture(place, result_sheet(predictor, dataset, range(min(6, len(dataset)))))


def _train(recipe: Recipe, folder: Path, device: str) -> Path:
    from kirie.recipe import read_recipe
    from kirie.training.fit import train
    from kirie.training.run import RECIPE, WRITTEN

    if (folder / RECIPE).exists():
        if read_recipe(folder / RECIPE, [f"train.epochs={recipe.train.epochs}"]) != recipe:
            raise KirieError(f"{folder} holds another run than the demo's, which stays; choose another place by --out.")
        strange = sorted(entry.name for entry in folder.iterdir() if entry.name not in WRITTEN)
        if strange:
            raise KirieError(
                f"{folder} holds {strange[0]}, which no demo wrote; move it, or choose another place by --out."
            )
        print(f"in place of the run of an earlier demo: {folder}")
        shutil.rmtree(folder)
    run = train(recipe, out=folder, device=device)
    if not run.finished or run.model is None:
        raise KirieError("The demo was stopped; run it again.")
    return run.folder
