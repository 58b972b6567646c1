"""The model file: one `.safetensors` with the weights and, as JSON in its metadata, all that prediction needs.

Nothing in the file can name code to run: the architecture is a row of `MODELS`, its arguments are plain values, and
the network's shape is compared with the tensors before any memory is taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kirie.classes import Classes
from kirie.cleanup import CleanupSettings
from kirie.errors import KirieError
from kirie.files import whole_file
from kirie.models import MODELS, model_class, model_name
from kirie.models.contract import InputFacts, SegmentationModel, unsound
from kirie.models.device import pick_device

FORMAT = 1
ENTRY = "kirie"
MAX_METADATA = 2**22  # characters; a sound file has a few thousand


@dataclass(frozen=True)
class ModelCard:
    """What a model file says about its weights.

    Attributes:
        architecture: a row of `MODELS` (or a user's `package.module:Class`, which loading refuses to import).
        in_channels: C of the images.
        classes: what it tells apart.
        arguments: the constructor's other arguments.
        inputs: what is done to a picture beforehand.
        cleanup: what is done to a semantic map afterwards; None for nothing.
        mean: per channel, what the model takes off images in [0, 1]; None in early files, where the architecture's own
            holds.
        std: per channel, what it then divides by; None likewise.
        recipe: the resolved recipe it was trained by, as a record only.
        scores: what it reached, by metric.
    """

    architecture: str
    in_channels: int
    classes: Classes
    arguments: Mapping[str, Any]
    inputs: InputFacts
    cleanup: CleanupSettings | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    recipe: Mapping[str, Any] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def save(
    model: SegmentationModel,
    path: str | Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    scores: Mapping[str, float] | None = None,
) -> Path:
    """Writes a model to one `.safetensors` file, whole or not at all, and returns its path.

    Args:
        model: the model; its weights must be finite.
        path: where to write; the ending `.safetensors` is expected.
        recipe: how it was trained, plain JSON values, kept as a record; None keeps the one that the model has.
        scores: what it reached, by metric.

    Raises:
        KirieError: when weights hold NaN or infinity, the name has another ending, the record is too long to be read
            again, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise KirieError(f"A model file ends in .safetensors, got {path.name!r}.")
    if model.artifact is not None:
        raise KirieError("An exported model has no weights to save: save the one that it was exported from.")
    wrong = unsound(model)
    if wrong is not None:
        raise KirieError(f"The model holds {wrong}; nothing was written.")
    text = json.dumps(described(model, recipe=recipe, scores=scores))
    if len(text) > MAX_METADATA:
        raise KirieError(
            f"Recipe, scores and classes take {len(text):,} characters, a model file holds {MAX_METADATA:,}: "
            "shorten them."
        )
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(path) as stand_in:
        try:
            save_file(state, stand_in, metadata={ENTRY: text})
        except SafetensorError as error:  # the library reports a full disk as its own kind of error
            raise OSError(None, str(error)) from error
    return path


def described(
    model: SegmentationModel,
    *,
    recipe: Mapping[str, Any] | None = None,
    scores: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What a file says about a model's weights, as plain JSON values that `card_of` reads; arguments as of `save`."""
    return {
        "format": FORMAT,
        "architecture": model_name(model),
        "in_channels": model.in_channels,
        "classes": model.classes.to_dict(),
        "arguments": model.arguments,
        "inputs": model.inputs.to_dict(),
        "cleanup": None if model.cleanup is None else model.cleanup.to_dict(),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "recipe": model.recipe if recipe is None else recipe,
        "scores": dict(scores or {}),
    }


def load(
    path: str | Path, *, device: str = "cpu", architecture: type[SegmentationModel] | None = None
) -> SegmentationModel:
    """The model that a file holds, in evaluation mode on `device`. Needs no recipe and runs no code from the file.

    Args:
        path: a `.safetensors` file that kirie wrote, or the folder of a run (its `model.safetensors` is taken).
        device: where to put it: "cpu", "cuda", "auto" (a GPU where there is one)...
        architecture: your own class, for a file that was saved from one; a file can only name kirie's.

    Raises:
        KirieError: when the file is missing, cut short, of another format, does not fit its own description, or holds
            NaN or infinity; or when there is no such device.
    """
    place = pick_device(device)
    path = model_path(path)
    card = read_card(path)
    shape = outline(card, path, architecture)
    try:
        with safe_open(path, framework="pt") as file:
            _compare(shape, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, path)
            model = _build(type(shape), card, path)
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, OSError) as error:
        raise KirieError(f"{path} is damaged or cut short: {error}") from error
    wrong = unsound(model)
    if wrong is not None:
        raise KirieError(f"{path} holds {wrong}.")
    take_facts(model, card)
    return model.to(place).eval()


def outline(card: ModelCard, path: Path, architecture: type[SegmentationModel] | None = None) -> SegmentationModel:
    """The model of a card on the meta device: its shape, without memory for weights.

    Args:
        card: of a file.
        path: the file, for messages.
        architecture: your own class, where the card is that of one.

    Raises:
        KirieError: when kirie has no such architecture, or it cannot be built.
    """
    if architecture is None and card.architecture not in MODELS and ":" in card.architecture:
        raise KirieError(
            f"{path}: There is no architecture {card.architecture!r:.80} in kirie, and loading runs no code that a "
            "file names. If the class is your own, give it as kirie.load(..., architecture=YourClass), or on the "
            "command line as --architecture package.module:YourClass."
        )
    with _naming(path):
        model_type = architecture or model_class(card.architecture)
    with torch.device("meta"):
        return _build(model_type, card, path)


def take_facts(model: SegmentationModel, card: ModelCard) -> None:
    """Gives a model what its card says beyond its arguments."""
    model.inputs, model.cleanup, model.recipe = card.inputs, card.cleanup, card.recipe
    for buffer, values in ((model.mean, card.mean), (model.std, card.std)):
        if values is not None:  # what an encoder expects may change with the library that it comes from
            buffer.copy_(torch.tensor(values).reshape(buffer.shape))


def model_path(path: str | Path) -> Path:
    """The model file that a path means: itself, or `model.safetensors` in a run's folder.

    Raises:
        KirieError: when there is none.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise KirieError(f"There is no model file {path}.")
    return path


def model_paths(path: str | Path) -> list[Path]:
    """What to load for a path: itself, or the model file of each fold in the folder of a k-fold training, in order.

    Raises:
        KirieError: when a fold has none.
    """
    folds = sorted(Path(path).glob("fold-*"), key=lambda fold: (len(fold.name), fold.name))
    return [model_path(fold) for fold in folds] if folds else [Path(path)]


def read_card(path: str | Path) -> ModelCard:
    """What a model file says about its weights, without reading them.

    Raises:
        KirieError: when the file is no model file of kirie or its metadata are not what kirie writes.
    """
    path = model_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(ENTRY)
    except (SafetensorError, OSError) as error:
        raise KirieError(
            f"{path} is no safetensors file, or it is cut short ({error}). "
            "Bring other projects' checkpoints in with `kirie import`."
        ) from error
    if text is None:
        raise KirieError(f"{path} was not written by kirie: bring it in with `kirie import {path}`.")
    return card_of(text, path)


def card_of(text: str, path: Path) -> ModelCard:
    """The card that `described` wrote as JSON, checked; other entries are passed over.

    Args:
        text: the JSON.
        path: the file that it stands in, for messages.

    Raises:
        KirieError: when it is not what kirie writes.
    """
    if len(text) > MAX_METADATA:
        raise KirieError(f"{path} has {len(text):,} characters of metadata; a sound file has at most {MAX_METADATA:,}.")
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        raise KirieError(f"The metadata of {path} are not valid JSON: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        came = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise KirieError(f"{path} has format {came!r}, this kirie reads format {FORMAT}; a newer kirie may read it.")
    return _checked(card, path)


def _checked(card: dict[str, Any], path: Path) -> ModelCard:
    kinds = {
        "architecture": str,
        "in_channels": int,
        "classes": dict,
        "arguments": dict,
        "inputs": dict,
        "scores": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(card.get(name), kind) or isinstance(card.get(name), bool):
            raise KirieError(
                f"{path}: the metadata entry {name!r} must be {kind.__name__}, got {card.get(name)!r:.80}."
            )
    for name, score in card["scores"].items():
        if type(score) not in (int, float):
            raise KirieError(f"{path}: the score {name!r:.80} must be a number, got {score!r:.80}.")
    recipe = card.get("recipe")
    if not 1 <= card["in_channels"] <= 4096 or not (recipe is None or isinstance(recipe, dict)):
        raise KirieError(f"{path}: `in_channels` must be 1 to 4096 and `recipe` a mapping or nothing.")
    with _naming(path):
        classes, inputs = Classes.from_dict(card["classes"]), InputFacts.from_dict(card["inputs"])
        after = card.get("cleanup")
        cleanup = None if after is None else CleanupSettings.from_dict(after)
    mean, std = (_per_channel(card, name, path) for name in ("mean", "std"))
    return ModelCard(
        card["architecture"],
        card["in_channels"],
        classes,
        card["arguments"],
        inputs,
        cleanup,
        mean,
        std,
        recipe,
        card["scores"],
    )


def _per_channel(card: dict[str, Any], name: str, path: Path) -> tuple[float, ...] | None:
    values = card.get(name)
    if values is None:
        return None
    sound = isinstance(values, list) and len(values) == card["in_channels"]
    if not sound or not all(type(v) in (int, float) and abs(v) < 1e6 and (name == "mean" or v > 0) for v in values):
        raise KirieError(
            f"{path}: the metadata entry {name!r} must be {card['in_channels']} numbers, one per channel"
            f"{'' if name == 'mean' else ' and above 0'}, got {values!r:.80}."
        )
    return tuple(float(v) for v in values)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with a value in it."""
    try:
        yield
    except KirieError as error:
        raise KirieError(f"{path}: {error}") from error


def _build(model_type: type[SegmentationModel], card: ModelCard, path: Path) -> SegmentationModel:
    build: Any = model_type
    outside = sorted(model_type.never_from_file & set(card.arguments))
    if outside:
        raise KirieError(
            f"{path} sets {', '.join(outside)}, which a model file may not: it would lead outside the file."
        )
    try:
        model: SegmentationModel = build(card.in_channels, card.classes, **card.arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise KirieError(f"{path} describes a {card.architecture} that cannot be built: {error}") from error
    return model


def _compare(outline: SegmentationModel, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()}
    missing, extra = sorted(set(expected) - set(shapes)), sorted(set(shapes) - set(expected))
    other = [name for name in expected if name in shapes and expected[name] != shapes[name]]
    if missing or extra or other:
        raise KirieError(
            f"The tensors of {path} do not fit its description: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(other)} of another shape {other[:3]}."
        )
