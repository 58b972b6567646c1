"""The command that runs a model on pictures: predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kirie.cli_results import (
    MODEL_END,
    Architecture,
    Device,
    NoCleanup,
    Others,
    Runtime,
    Task,
    Tta,
    load_model,
)
from kirie.errors import KirieError
from kirie.terminal import complain

if TYPE_CHECKING:
    from kirie.models.contract import SegmentationModel
    from kirie.prediction.pieces import Engine
    from kirie.prediction.predictor import Predicts


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
            help="What to write, with commas: labels, zarr, overlay; of semantic models scores; of models that find "
            "objects ids, csv, coco, yolo, geojson, cutouts. The default is labels,overlay of semantic models, "
            "overlay,csv of instance models, overlay,coco of panoptic ones.",
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
    tile: Annotated[
        str,
        typer.Option(
            help="Look at larger pictures in overlapping tiles of so many pixels a side; auto: where the memory would "
            "not suffice; none: never."
        ),
    ] = "auto",
    tile_overlap: Annotated[
        int | None, typer.Option(help="Pixels that tiles share (default: a quarter of a tile, at most 128).")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Who predicts: local, this process; ray, workers of Ray, which read URLs too.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="With --engine ray: how many (default: one for each GPU, or else for each CPU).")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A Ray cluster that runs (default: RAY_ADDRESS, else this machine)."),
    ] = None,
    task: Task = None,
    tta: Tta = "none",
    others: Others = None,
    no_cleanup: NoCleanup = False,
    device: Device = "auto",
    runtime: Runtime = "auto",
    architecture: Architecture = None,
) -> None:
    """Predict pictures.

    A bad file is reported and the others go on; the exit code is 1 then. A run that was broken off goes on when the
    same command is given again. With --semantic A --instance B two models make panoptic maps together.
    """
    from kirie.models.file import model_paths
    from kirie.prediction.tile_size import parse_tile

    spread = _engine(engine, device, workers, ray_address)
    tiles: dict[str, Any] = {"tile": parse_tile(tile), "tile_overlap": tile_overlap}
    names = None if classes is None else _words(classes)
    limits = {"overlap": overlap, "stuff_area": stuff_area}
    choice: dict[str, Any] = {"threshold": threshold, "classes": names, "max_detections": max_detections}
    if semantic is None and instance is None:
        model, *images = inputs
        if not images:
            raise KirieError(f"Give the pictures behind the model {model}: kirie predict MODEL IMAGES... --out FOLDER.")
        read = partial(load_model, task=task, runtime=runtime, device=device)
        chosen, *averaged = (partial(read, path, architecture, no_cleanup=no_cleanup) for path in model_paths(model))
        averaged += [partial(read, other) for other in others or ()]
        predictor = one_model(chosen, device, choice=choice | tiles, merging=limits, tta=tta, others=averaged)
    else:
        images = inputs
        models = [
            given for given in images if given.endswith(MODEL_END) or (Path(given) / f"model{MODEL_END}").exists()
        ]
        if models:
            raise KirieError(f"{models[0]} is a model, where --semantic and --instance leave room for pictures alone.")
        choice |= {"architecture": architecture, "task": task, "with": others, "tta": None if tta == "none" else tta}
        read = partial(load_model, no_cleanup=no_cleanup, runtime=runtime, device=device)
        predictor = _two_models(semantic, instance, device, read, choice=choice, merging=limits, tiles=tiles)
    done = run_prediction(predictor, images, out, save, image_ids=image_ids, shard=shard, anew=anew, engine=spread)
    raise typer.Exit(done)


def _engine(
    name: str, device: str, workers: int | None, address: str | None
) -> Callable[[Callable[[], Predicts]], Engine] | None:
    """What makes an engine of what loads a predictor; None where this process predicts."""
    if name not in ("local", "ray"):
        raise KirieError(f"--engine is local or ray, got {name!r:.60}.")
    if name == "local":
        if workers is not None or address is not None:
            raise KirieError(f"--{'ray-address' if workers is None else 'workers'} is of use with --engine ray only.")
        return None
    from kirie.distributed.ray_data import RayWorkers

    return partial(RayWorkers, workers=workers, device=device, address=address)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def run_prediction(
    predictor: Callable[..., Predicts],
    images: Sequence[str],
    out: Path,
    save: str | None,
    *,
    image_ids: Path | None = None,
    shard: str | None = None,
    anew: bool = False,
    engine: Callable[[Callable[[], Predicts]], Engine] | None = None,
) -> int:
    """Predicts pictures into a folder and says how many, and how quickly; 1 when some failed, else 0.

    Args:
        predictor: loads what predicts, for the kinds of results that will be saved, on its own or a given `device`;
            called when all else is sound.
        images: files, folders and glob patterns.
        out: the folder to write to.
        save: kinds of results with commas between; None for the usual ones.
        image_ids: see `predict_files`.
        shard: likewise, as `shards.parse_shard` reads it.
        anew: likewise.
        engine: makes an engine of what loads a predictor, which workers do then; None predicts in this process.
    """
    from kirie.prediction.kinds import check_kinds
    from kirie.prediction.predict_files import find_images, predict_files
    from kirie.prediction.shards import WHOLE, parse_shard

    kinds = None if save is None else _words(save)
    if kinds is not None:
        check_kinds(kinds)  # complain about what was typed before loading anything
    part = WHOLE if shard is None else parse_shard(shard)
    load = partial(predictor, kinds or ())
    workers = None if engine is None else engine(load)
    find_images(images, workers is not None)
    done, failed, earlier = 0, 0, 0
    here = load() if workers is None else load(device="cpu")  # whose results are known, while workers predict
    settings: dict[str, Any] = {"kinds": kinds, "images": image_ids, "shard": part, "anew": anew, "engine": workers}
    outcomes = predict_files(here, images, out, **settings)
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
) -> Callable[..., Predicts]:
    """What loads a model, and others that it is averaged with, ready to predict, for `run_prediction`."""

    def load(kinds: Sequence[str], device: str = device) -> Predicts:
        from kirie.prediction.predict import shown_predictor

        settings = {"device": device, "scores": "scores" in kinds, **(choice or {}), **_given(merging)}
        return shown_predictor(model(), tta=tta, others=[other() for other in others], **settings)

    return load


def _two_models(
    semantic: Path | None,
    instance: Path | None,
    device: str,
    read: Callable[[Path], SegmentationModel],
    *,
    choice: Mapping[str, Any],
    merging: Mapping[str, Any],
    tiles: Mapping[str, Any],
) -> Callable[..., Predicts]:
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

    def load(kinds: Sequence[str], device: str = device) -> Predicts:
        from kirie.prediction.panoptic_pair import shown_pair

        first, second = (read(path) for path in paths)
        settings = {"score": choice["threshold"], "device": device, **_given(merging), **tiles}
        return shown_pair(first, second, **settings)

    return load


def _given(options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (options or {}).items() if value is not None}
