"""The verb `load`: a model file, or an exported one, by the runtime that is asked for."""

from __future__ import annotations

from pathlib import Path

from kirie.errors import KirieError
from kirie.models.contract import SegmentationModel
from kirie.models.device import pick_device
from kirie.models.file import load as load_file
from kirie.models.file import model_path
from kirie.progress import say
from kirie.runtimes import ENDINGS, RUNTIMES, runtime_of
from kirie.runtimes.exported import load_export
from kirie.runtimes.record import PRECISIONS, Export, check_files, default_name, digest_of, read_record

CHOICES = ("auto", "torch", *RUNTIMES)


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    architecture: type[SegmentationModel] | None = None,
    runtime: str | None = None,
) -> SegmentationModel:
    """The model that a file holds, in evaluation mode. Needs no recipe and runs no code from the file.

    Args:
        path: a `.safetensors` file that kirie wrote; the folder of a run (its `model.safetensors` is taken); or a file
            that `kirie export` wrote, which runs on the CPU by its own runtime.
        device: where to put it: "cpu", "cuda", "auto" (a GPU where there is one)...
        architecture: your own class, for a file that was saved from one; a file can only name kirie's.
        runtime: what is to run the model of a `.safetensors` file: None or "torch"; a row of `RUNTIMES`, for its export
            that lies beside it; or "auto", for the fastest of all of them, as measured when they were exported.

    Raises:
        KirieError: when the file is missing, cut short, of another format, does not fit its own description, or holds
            NaN or infinity; when there is no such device or runtime, or no export for it.
    """
    file = Path(path) if runtime is None else picked(path, runtime, device)
    if file.suffix == ".pt2":
        raise KirieError(
            f"{file} is for torch.export.load: reading it can run code that is in it, so kirie does not. Give the "
            "model file, or an export for openvino or onnx."
        )
    if runtime_of(file) is None:
        return load_file(file, device=device, architecture=architecture)
    return load_export(file, architecture=architecture).to(pick_device(device))


def picked(path: str | Path, runtime: str, device: str = "cpu") -> Path:
    """The file by which a model is run: its own, or the export beside it that a runtime or "auto" asks for.

    Arguments and errors as of `load`.
    """
    if runtime not in CHOICES:
        raise KirieError(f"There is no runtime {runtime!r:.60}; expected {', '.join(CHOICES)}.")
    path, own = Path(path), runtime_of(path)
    if own is not None:
        if runtime not in ("auto", own):
            raise KirieError(f"{path} is an export for {own}: give the model file, or leave --runtime out.")
        return path
    return path if runtime == "torch" else _chosen(model_path(path), runtime, device) or path


def exports_of(model: Path, runtime: str = "auto") -> dict[Path, Export]:
    """The exports beside a model file that were made from it as it is now and whose runtimes are installed."""
    wanted = list(RUNTIMES) if runtime == "auto" else [runtime]
    places = [
        model.with_name(default_name(model.stem, precision) + ENDINGS[name])
        for name in wanted
        for precision in PRECISIONS
    ]
    found = {}
    for place in places:
        if not place.is_file():
            continue
        try:
            export = read_record(place)[1]
            check_files(export, place)
        except KirieError as error:
            say(f"not used: {error}")
            continue
        found[place] = export
    digest = digest_of(model) if found else ""
    return {place: export for place, export in found.items() if export.source == digest}


def _chosen(model: Path, runtime: str, device: str) -> Path | None:
    """The fastest export of a model file; None for the file itself."""
    if runtime == "auto" and pick_device(device).type != "cpu":
        return None
    found = exports_of(model, runtime)
    if runtime == "auto":
        found = {place: export for place, export in found.items() if export.gain > 1}
    elif not found:
        raise KirieError(
            f"There is no export of {model} as it is now for {runtime}: make one by "
            f"`kirie export {model} --to {runtime}`."
        )
    chosen = max(found, key=lambda place: found[place].gain, default=None)
    if runtime == "auto" and chosen is not None:
        say(f"predicting by {chosen}, {found[chosen].gain:.1f} x as fast as PyTorch when it was exported")
    return chosen
