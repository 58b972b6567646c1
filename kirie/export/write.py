"""The verb `export`: from a model file to files of another runtime, kept only when they are proved."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from kirie.data import open_dataset
from kirie.data.dataset import Dataset
from kirie.demo_pictures import demo_picture, demo_source
from kirie.errors import KirieError, WriteError, refusal
from kirie.export import TARGETS
from kirie.export.capture import OPSET
from kirie.export.proof import Proof, milliseconds, proof_pictures, prove
from kirie.export.targets import Parts
from kirie.files import whole_file
from kirie.lookup import look_up
from kirie.models.contract import SegmentationModel
from kirie.models.file import card_of, described, load, model_path, outline, read_card
from kirie.prediction.evaluate import folder_settings, measure, open_for
from kirie.prediction.pictures import Picture, as_picture
from kirie.prediction.predictor import Predictor
from kirie.runtimes import runtime_of
from kirie.runtimes.exported import with_graphs
from kirie.runtimes.record import PRECISIONS, Export, default_name, digest_of, free_seal, note_of, seal

PICTURES = 3  # of a data set that an export is proved on
PACKAGES = ("kirie", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        path: its file; others of the same stem may lie beside it.
        export: what the file says of itself.
        proof: beside the original.
        scores: of the original and of the export on the data set; None where none was given.
    """

    path: Path
    export: Export
    proof: Proof
    scores: tuple[float, float] | None


def export_model(
    model: str | Path,
    *,
    to: str = "openvino",
    out: str | Path | None = None,
    precision: str = "fp32",
    data: str | Path | None = None,
    split: str | None = None,
    max_loss: float = 0.01,
    pictures: Sequence[Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a model for another runtime, and keeps the files only when they are proved beside the original.

    Args:
        model: a model file or the folder of a run.
        to: a row of `TARGETS`.
        out: the file to write; None takes the model's own name, beside it, where prediction finds it.
        precision: "fp32"; "fp16", weights of 16 bits; "bf16", computed in bfloat16 where the machine can (OpenVINO);
            or "int8", calibrated on the data set's training pictures.
        data: a data set. The proof is on its pictures; and precisions below fp32 are accepted by it.
        split: which of it accuracy is measured on; None as `kirie.evaluate` takes it.
        max_loss: how much lower the score on the data may be than the original's (mIoU, mask AP, PQ: 0.01).
        pictures: paths, arrays or Pillow images that it is proved on, in place of the data's.
        overwrite: replace files that are there.

    Raises:
        KirieError: when the model, the data or the runtime cannot be used, the network cannot be captured, files are
            there already, the system refuses to write, or the export is not what the original is; nothing is written
            then.
    """
    form = _form(to, precision, data, max_loss)
    path = model_path(model)
    if runtime_of(path) is not None:
        raise KirieError(f"{path} is an export already: give the model file that it was made from.")
    place = path.with_name(default_name(path.stem, precision) + form.ending) if out is None else Path(out)
    with _writing(place):
        _check_place(place, to, form.ending, overwrite=overwrite)
    original = load(path)
    dataset = None if data is None else open_for(original, data, split, None)
    shown = proof_pictures(_pictures(original, dataset, pictures), original.least_side)
    card = described(original, scores=read_card(path).scores)
    heads = original.heads()
    draft = Export(to, precision, original.least_side, tuple(heads), {}, digest_of(path), OPSET, _versions())
    with _drafts(place) as folder:
        parts = form(folder / place.name, original, precision)
        calibrating = None if precision != "int8" else _calibrating(original, data)
        with _writing(place):
            parts.write(calibrating)
        copy = _loaded(card, draft, parts)
        proof = prove(original, copy, shown)
        scores = None
        if dataset is not None and precision != "fp32":
            scores = _score(original, dataset, "measuring the original"), _score(copy, dataset, "measuring the export")
        _accept(proof, scores, precision, max_loss)
        times = milliseconds((original, copy), shown[0])
        own = parts.files()
        made = replace(
            draft,
            files={name: digest_of(file) for name, file in own.items() if name != place.name},
            proof=proof.to_dict() | ({} if scores is None else {"scores": list(scores)}),
            milliseconds={"torch": times[0], to: times[1]},
            machine=platform.processor() or platform.machine(),
            seal=None if runtime_of(place) is None else free_seal(),
        )
        with _writing(place):
            parts.annotate(note_of(card, made, place))
            if made.seal is not None:
                made = replace(made, seal=seal(parts.path, made.seal))
        others = [name for name in own if place.with_name(name).exists() and not overwrite]
        if others:
            raise KirieError(f"{place.with_name(others[0])} is there already: replace it with --overwrite.")
        for name in sorted(own, key=lambda name: name == place.name):  # the file that names the others comes last
            with whole_file(place.with_name(name)) as stand_in:
                own[name].replace(stand_in)
    return Exported(place, made, proof, scores)


def _form(to: str, precision: str, data: object, max_loss: float) -> type[Parts]:
    """What writes such an export, once all that was asked for is possible."""
    if to not in TARGETS:
        raise KirieError(f"Models are exported to {', '.join(TARGETS)}, got {to!r:.60}.")
    if precision not in PRECISIONS:
        raise KirieError(f"A precision is one of {', '.join(PRECISIONS)}, got {precision!r:.60}.")
    form: type[Parts] = look_up(TARGETS[to])
    if precision not in form.precisions:
        raise KirieError(f"For {to} there is {', '.join(form.precisions)}, got {precision}.")
    missing = [name for name in (*form.packages, *["nncf"] * (precision == "int8")) if find_spec(name) is None]
    if missing:
        raise KirieError(f"Not installed: {', '.join(missing)}. Get what exports take: pip install 'kirie[export]'.")
    if precision == "int8" and data is None:
        raise KirieError("int8 is calibrated and measured on labelled pictures: give a data set (--data DATA).")
    if not 0 <= max_loss <= 1:
        raise KirieError(f"The loss of accuracy that is accepted is from 0 to 1, got {max_loss!r}.")
    return form


def _check_place(place: Path, to: str, ending: str, *, overwrite: bool) -> None:
    if place.suffix != ending:
        raise KirieError(f"An export for {to} ends in {ending}, got {place.name!r}.")
    if place.exists() and not overwrite:
        raise KirieError(f"{place} is there already: replace it with --overwrite, or choose another place by --out.")


@contextmanager
def _drafts(place: Path) -> Iterator[Path]:
    """A folder beside a file that is to be written, for what is being made of it; gone with the block.

    So are those made for it, where the block leaves them empty.
    """
    missing = [folder for folder in place.parents if not folder.exists()]
    try:
        with _writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            drafts = TemporaryDirectory(prefix=".kirie-export-", dir=place.parent)
        with drafts:
            yield Path(drafts.name)
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Tells what the system refuses in the block, of the file for which it is done."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"Cannot write {place}: {refusal(error)} by --out.") from error


def _pictures(model: SegmentationModel, dataset: Dataset | None, given: Sequence[Any] | None) -> list[Picture]:
    """The pictures of the proof: those given, some of the data, some that the model learned from, or the demo's."""
    if given is not None:
        if not given:
            raise KirieError("An export is proved on at least one picture.")
        return [as_picture(image, model.in_channels) for image in given]
    if dataset is None:
        dataset = _learned_from(model)
    if dataset is not None and len(dataset):
        places = np.unique(np.linspace(0, len(dataset) - 1, min(PICTURES, len(dataset))).round().astype(int))
        return [dataset[int(index)].image for index in places]
    rng = np.random.default_rng(0)
    side = max(model.least_side, 256)
    return [
        _with_channels(demo_picture(rng, demo_source(name), (side, side * 5 // 4))[0], model.in_channels)
        for name in ("val", "test")
    ]


def _with_channels(picture: Picture, channels: int) -> Picture:
    """A picture (H, W, 3) with as many channels as a model takes, by repeating its own."""
    return np.ascontiguousarray(picture[..., np.arange(channels) % 3])


def _learned_from(model: SegmentationModel) -> Dataset | None:
    """The pictures that the recipe of a model names, where they are still there."""
    section = (model.recipe or {}).get("data")
    home = section.get("path") if isinstance(section, Mapping) else None
    if not isinstance(home, str) or not Path(home).exists():
        return None
    try:
        return open_for(model, home, None, None)
    except KirieError:
        return None


def _calibrating(model: SegmentationModel, data: Any) -> Dataset:
    """The pictures that calibrate: of the train split where there is one, so that none is also measured on."""
    settings = replace(folder_settings(model), channels=model.in_channels)
    dataset = open_dataset(data, task=model.task, settings=settings)
    return dataset.only("train") if "train" in dataset.splits else dataset


def _loaded(card: Mapping[str, Any], draft: Export, parts: Parts) -> SegmentationModel:
    known = card_of(json.dumps(card), parts.path)
    return with_graphs(outline(known, parts.path), known, draft, parts.path, graph=parts.graph)


def _score(model: SegmentationModel, dataset: Dataset, title: str) -> float:
    return float(measure(Predictor(model, device="cpu"), dataset, title=title).report.score)


def _accept(proof: Proof, scores: tuple[float, float] | None, precision: str, max_loss: float) -> None:
    """Raises a KirieError where an export is not good enough to be kept."""
    if scores is not None:
        if not scores[0] - scores[1] <= max_loss:  # a score may be NaN
            raise KirieError(
                f"In {precision} the score falls from {scores[0]:.4f} to {scores[1]:.4f}, by more than {max_loss:g}, "
                "so nothing was written. Take a higher precision, or accept more by --max-loss."
            )
        return
    if not proof.passed:
        mend = "Take fp32." if precision == "bf16" else "Please report it."
        if precision != "fp32":
            mend = "Measure what that costs by --data DATA, which is accepted up to --max-loss."
        raise KirieError(f"The export is not what the model is, so nothing was written: {proof.words()}. {mend}")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["torch"] = torch.__version__
    return found
