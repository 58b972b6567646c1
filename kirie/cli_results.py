"""The commands that run a model: evaluate, predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kirie.cli_data import Data, FolderChanges, typed_settings
from kirie.errors import KirieError
from kirie.lookup import see_own_modules
from kirie.terminal import complain, json_text, print_table, shown

if TYPE_CHECKING:
    from kirie.models.contract import SegmentationModel
    from kirie.prediction.predictor import Predicts

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors model file or the folder of a run.")]
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
    architecture: Architecture = None,
) -> None:
    """Measure a model on a data set.

    Prints a table, and writes a report with the best and the worst pictures.
    """
    from kirie.models.file import model_path, model_paths

    path, *folds = map(model_path, model_paths(model))
    loaded = load_model(path, architecture, task=task, no_cleanup=no_cleanup)
    more = [load_model(other, architecture, task=task, no_cleanup=no_cleanup) for other in folds]
    more += [load_model(other, task=task) for other in others or ()]
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


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL IMAGES...",
            help="A .safetensors model file or the folder of a run (not with --semantic and --instance), then picture "
            "files, folders, or patterns in quotes.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    save: Annotated[
        str | None,
        typer.Option(
            help="What to write, with commas: labels, overlay; of semantic models scores; of models that find objects "
            "ids, csv, coco, yolo, cutouts. The default is labels,overlay of semantic models, overlay,csv of instance "
            "models, overlay,coco of panoptic ones.",
            show_default=False,
        ),
    ] = None,
    semantic: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="With --instance: a semantic model, merged with it into panoptic maps."),
    ] = None,
    instance: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="With --semantic: an instance model, in place of MODEL.")
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
    overlap: Annotated[
        float | None,
        typer.Option(help="Of panoptic maps: an object goes of which more than this share is covered (default: 0.5)."),
    ] = None,
    stuff_area: Annotated[
        int | None,
        typer.Option(help="Of panoptic maps: stuff of fewer pixels becomes void (default: the model's own, or 4096)."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Predict only the I-th of N parts of the pictures, each on a machine of its own: 2/4. The last one to "
            "end joins tables and COCO files.",
        ),
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Begin anew what an earlier run has done or begun.")] = False,
    task: Task = None,
    tta: Tta = "none",
    others: Others = None,
    no_cleanup: NoCleanup = False,
    device: Device = "auto",
    architecture: Architecture = None,
) -> None:
    """Predict pictures.

    A bad file is reported and the others go on; the exit code is 1 then. A run that was broken off goes on when the
    same command is given again. With --semantic A --instance B two models make panoptic maps together.
    """
    from kirie.models.file import model_paths

    names = None if classes is None else _words(classes)
    limits = {"overlap": overlap, "stuff_area": stuff_area}
    choice: dict[str, Any] = {"threshold": threshold, "classes": names, "max_detections": max_detections}
    if semantic is None and instance is None:
        model, *images = inputs
        if not images:
            raise KirieError(f"Give the pictures behind the model {model}: kirie predict MODEL IMAGES... --out FOLDER.")
        chosen, *averaged = (
            partial(load_model, path, architecture, task=task, no_cleanup=no_cleanup) for path in model_paths(model)
        )
        averaged += [partial(load_model, other, task=task) for other in others or ()]
        predictor = one_model(chosen, device, choice=choice, merging=limits, tta=tta, others=averaged)
    else:
        images = inputs
        models = [
            given for given in images if given.endswith(MODEL_END) or (Path(given) / f"model{MODEL_END}").exists()
        ]
        if models:
            raise KirieError(f"{models[0]} is a model, where --semantic and --instance leave room for pictures alone.")
        choice |= {"architecture": architecture, "task": task, "with": others, "tta": None if tta == "none" else tta}
        predictor = _two_models(semantic, instance, device, no_cleanup, choice=choice, merging=limits)
    raise typer.Exit(run_prediction(predictor, images, out, save, image_ids=image_ids, shard=shard, anew=anew))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def run_prediction(
    predictor: Callable[[Sequence[str]], Predicts],
    images: Sequence[str],
    out: Path,
    save: str | None,
    *,
    image_ids: Path | None = None,
    shard: str | None = None,
    anew: bool = False,
) -> int:
    """Predicts pictures into a folder and says how many, and how quickly; 1 when some failed, else 0.

    Args:
        predictor: loads what predicts, for the kinds of results that will be saved; called when all else is sound.
        images: files, folders and glob patterns.
        out: the folder to write to.
        save: kinds of results with commas between; None for the usual ones.
        image_ids: see `predict_files`.
        shard: likewise, as `shards.parse_shard` reads it.
        anew: likewise.
    """
    from kirie.prediction.kinds import check_kinds
    from kirie.prediction.predict_files import find_images, predict_files
    from kirie.prediction.shards import WHOLE, parse_shard

    kinds = None if save is None else _words(save)
    if kinds is not None:
        check_kinds(kinds)  # complain about what was typed before loading anything
    part = WHOLE if shard is None else parse_shard(shard)
    find_images(images)
    done, failed, earlier = 0, 0, 0
    outcomes = predict_files(predictor(kinds or ()), images, out, kinds=kinds, images=image_ids, shard=part, anew=anew)
    begun = time.perf_counter()
    for outcome in outcomes:
        earlier += outcome.earlier
        if outcome.error is None:
            done += 1
        else:
            failed += 1
            complain(outcome.error)
    rate = (done + failed - earlier) / (time.perf_counter() - begun)
    more = {f"{failed} failed": failed, f"{earlier} by an earlier run": earlier, f"{rate:.3g} pictures a second": rate}
    print(", ".join([f"{done} predicted into {out}", *(words for words, number in more.items() if number)]))
    return 1 if failed else 0


def one_model(
    model: Callable[[], SegmentationModel],
    device: str,
    *,
    choice: Mapping[str, Any] | None = None,
    merging: Mapping[str, Any] | None = None,
    tta: str = "none",
    others: Sequence[Callable[[], SegmentationModel]] = (),
) -> Callable[[Sequence[str]], Predicts]:
    """What loads a model, and others that it is averaged with, ready to predict, for `run_prediction`."""

    def load(kinds: Sequence[str]) -> Predicts:
        from kirie.prediction.predict import shown_predictor

        settings = {"device": device, "scores": "scores" in kinds, **(choice or {}), **_given(merging)}
        return shown_predictor(model(), tta=tta, others=[other() for other in others], **settings)

    return load


def _two_models(
    semantic: Path | None,
    instance: Path | None,
    device: str,
    no_cleanup: bool,
    *,
    choice: Mapping[str, Any],
    merging: Mapping[str, Any],
) -> Callable[[Sequence[str]], Predicts]:
    """The same for two models whose results are merged."""
    if semantic is None or instance is None:
        there, missing = ("instance", "semantic") if semantic is None else ("semantic", "instance")
        raise KirieError(f"--{there} makes panoptic maps with another model: name it by --{missing}.")
    wrong = [
        name
        for name in ("classes", "max_detections", "architecture", "task", "with", "tta")
        if choice[name] is not None
    ]
    if wrong:
        raise KirieError(f"--{wrong[0].replace('_', '-')} is of no use for panoptic maps: leave it out.")
    paths = (semantic, instance)

    def load(kinds: Sequence[str]) -> Predicts:
        from kirie.prediction.panoptic_pair import PanopticPair

        return PanopticPair(
            *(load_model(path, no_cleanup=no_cleanup) for path in paths),
            score=choice["threshold"],
            device=device,
            **_given(merging),
        )

    return load


def _given(options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (options or {}).items() if value is not None}


def load_model(
    model: Path, architecture: str | None = None, *, task: str | None = None, no_cleanup: bool = False
) -> SegmentationModel:
    """The model of a file or a run's folder, for a task, with or without the clean-up that it asks for."""
    from kirie.models import model_class
    from kirie.models.file import load as read
    from kirie.models.parts.region_objects import as_task

    if architecture is None:
        loaded = read(model)
    else:
        see_own_modules()
        loaded = read(model, architecture=model_class(architecture, own_code=True))
    if no_cleanup:
        loaded.cleanup = None
    return as_task(loaded, task)
