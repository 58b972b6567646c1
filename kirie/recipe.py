"""Recipes: one flat, typed, complete description of a training, read strictly from YAML."""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from kirie.classes import Classes
from kirie.criterion import build_loss
from kirie.data.augment import PRESETS, AugmentSettings
from kirie.data.folders import FolderSettings
from kirie.errors import KirieError
from kirie.lookup import look_up
from kirie.models import MODELS, model_class
from kirie.models.contract import SegmentationModel
from kirie.progress import say
from kirie.reading.strict_yaml import PLAIN_FLOAT, parse_yaml, read_yaml

_STRICT = ConfigDict(extra="forbid")
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # package.module:name


@dataclass(frozen=True, kw_only=True)
class DataRecipe(FolderSettings):
    """The data set: where it is, which task's truth to read, which splits to use, and how its folders are read.

    Attributes:
        path: its folder, or one file for all of it; or a user's own `package.module:function`, see `data/listed.py`.
        task: "semantic", "instance", "panoptic", or None for what the model learns.
        train: the split to learn from.
        val: the split to measure on.
    """

    path: str
    task: Literal["semantic", "instance", "panoptic"] | None = None
    train: str = "train"
    val: str = "val"

    __pydantic_config__ = _STRICT

    def folder_settings(self) -> FolderSettings:
        """How the folders are read."""
        return FolderSettings(**{f.name: getattr(self, f.name) for f in fields(FolderSettings)})


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The model: a row of `MODELS` or a user's `package.module:Class`, and its constructor's arguments.

    Attributes:
        name: which architecture.
        arguments: of its constructor, without `in_channels` and `classes`.
        start: a model file to take the weights of, as a start; layers whose shape differs (other classes) are left out.
    """

    name: str = "unet"
    arguments: dict[str, Any] = field(default_factory=dict)
    start: str | None = None

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.name not in MODELS and not _OWN.fullmatch(self.name):
            raise KirieError(
                f"model.name: there is no {self.name!r:.60}{_nearest(self.name, list(MODELS))}; your own class is "
                "written package.module:Class"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe:
    """The augmentation.

    Attributes:
        preset: a row of `PRESETS`.
        change: fields of `AugmentSettings` to set otherwise than the preset.
        own: a user's `package.module:function`, called as f(image=, mask=) after it.
        short_sides: each picture is first resized so that its shorter side has one of so many pixels, drawn anew each
            time; the largest is that of prediction. Empty for none. With `train.patch` null, batches of whole pictures
            of unequal size are padded at the right and below, without truth there.
        long_side: most pixels that the longer side then has.
    """

    preset: str = "light"
    change: dict[str, Any] = field(default_factory=dict)
    own: str | None = None
    short_sides: tuple[int, ...] = ()
    long_side: int | None = None

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        augment_settings(self)
        _check_ranges("augment", self, {"short_sides": (1, 2**16), "long_side": (1, 2**16)})
        if self.long_side is not None and not (self.short_sides and max(self.short_sides) <= self.long_side):
            raise KirieError(
                f"augment.long_side is {self.long_side!r:.60}; expected at least the largest of augment.short_sides, "
                f"{list(self.short_sides)!r:.60}, or none."
            )
        if self.own is not None and not _OWN.fullmatch(self.own):
            raise KirieError(f"augment.own must be package.module:function, got {self.own!r:.60}")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """The training.

    Attributes:
        epochs: passes over the data.
        draws: how often each picture is drawn per epoch, each time with another crop.
        batch_size: patches per step.
        patch: (H, W) of the patches; None trains on whole pictures (of one size, or with batch_size 1).
        loss: of semantic models, such as "dice+bce" or "0.3*focal+0.7*tversky"; None is "ce+dice". Other models have
            losses of their own.
        class_weights: of that loss: None, one factor per class, or "balanced" (by the inverse root of the pixel share).
        optimiser: "adamw" or "sgd".
        learning_rate: at its highest.
        layer_decay: each level of the model, counted from the head, learns at this many times the rate of the level
            above it; 1 is the same for all. For encoders with pretrained weights, 0.7 to 0.95.
        weight_decay: of weights, not of norms and biases.
        decay_biases: whether biases are decayed like weights, as by Detectron2; those of norms never are.
        momentum: of SGD.
        nesterov: whether SGD looks ahead by it.
        warmup: share of all steps during which the learning rate rises from near 0.
        schedule: "cosine", "poly" (power 0.9), "step" (at each of the milestones times gamma) or "constant" after that.
        milestones: of the schedule "step", as rising shares of all steps.
        gamma: of the schedule "step".
        accumulate: batches whose gradients are averaged before the weights move.
        clip: largest norm of the gradient; 0 for no limit.
        ema: decay of the moving average of the weights, which is what is measured and saved; 0 for none.
        precision: "fp32", "bf16", "fp16", or "auto": half precision on a GPU, and bf16 on a CPU that computes in it.
        channels_last: memory layout; faster on most machines.
        validate_every: epochs between measurements.
        patience: measurements without a better score before it stops early; 0 never stops.
        samples_every: epochs between sheets of sample pictures; 0 for none.
        workers: processes that read ahead; None chooses by the machine's cores.
        seed: of everything random.
    """

    epochs: int = 50
    draws: int = 1
    batch_size: int = 8
    patch: tuple[int, int] | None = (256, 256)
    loss: str | None = None
    class_weights: Literal["balanced"] | list[float] | None = None
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    decay_biases: bool = False
    momentum: float = 0.9
    nesterov: bool = True
    warmup: float = 0.05
    schedule: Literal["cosine", "poly", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    accumulate: int = 1
    clip: float = 1.0
    ema: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    validate_every: int = 1
    patience: int = 0
    samples_every: int = 5
    workers: int | None = None
    seed: int = 0

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        _check_ranges("train", self, _TRAIN_RANGES)
        if isinstance(self.class_weights, list) and not (
            all(0 <= weight < math.inf for weight in self.class_weights) and any(self.class_weights)
        ):
            raise KirieError(f"train.class_weights must be at least 0 and not all 0, got {self.class_weights}")
        if not 0 < self.layer_decay <= 1:
            raise KirieError(f"train.layer_decay must be above 0 and at most 1, got {self.layer_decay!r:.60}")
        stones = list(self.milestones)
        if (self.schedule == "step") != bool(stones) or stones != sorted(stones):
            raise KirieError(
                "train.milestones are rising shares of all steps for the schedule step, which needs them and no other "
                f"does; got {stones!r:.60} for {self.schedule!r:.60}"
            )
        try:
            if self.loss is not None:
                build_loss(self.loss)
        except KirieError as error:
            raise KirieError(f"train.loss: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete training: data, model, augmentation, training."""

    data: DataRecipe
    model: ModelRecipe = field(default_factory=ModelRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.data.short_side is not None and self.augment.short_sides:
            raise KirieError("data.short_side and augment.short_sides both resize the pictures: leave out one of them")


_SECTIONS = {"data": DataRecipe, "model": ModelRecipe, "augment": AugmentRecipe, "train": TrainRecipe}
_READER = TypeAdapter(Recipe)


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, which puts words in quotes that our loader would take for a number."""


_Dumper.add_implicit_resolver(*PLAIN_FLOAT)


def read_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `changes` such as "train.epochs=40" made to it.

    Raises:
        KirieError: when the file is missing or no YAML, or an entry is unknown or of the wrong type.
    """
    return parse_recipe(read_yaml(path, "recipe"), changes, source=str(path))


def parse_recipe(values: Any, changes: Sequence[str] = (), *, source: str = "The recipe") -> Recipe:
    """A recipe from plain values, with `changes` such as "train.epochs=40" made to it. Imports no code it names.

    Raises:
        KirieError: naming each entry that is unknown, missing, out of range or of the wrong type.
    """
    if not isinstance(values, Mapping):
        came = "nothing" if values is None else type(values).__name__
        raise KirieError(f"{source} must have the sections data, model, augment and train, got {came}.")
    try:
        # A copy in plain JSON values, in which an empty section means its defaults.
        given = {k: v for k, v in values.items() if v is not None or k not in _SECTIONS}
        plain = json.loads(json.dumps(given, default=str))
        text = json.dumps(_changed(plain, changes))
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, KirieError):
            raise
        raise KirieError(f"{source} holds a value that no recipe can hold: {error}.") from None
    try:
        # The strict JSON reading refuses "3" for 3 and yet takes a YAML list for a pair.
        return _READER.validate_json(text, strict=True)
    except ValidationError as error:
        raise KirieError(f"{source} cannot be followed: {'; '.join(_told(error))}.") from None


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every entry spelled out."""
    values = recipe_values(recipe)
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def build_model(recipe: ModelRecipe, classes: Classes, in_channels: int = 3) -> SegmentationModel:
    """The model a recipe names, for these classes and C = `in_channels`, with random or the recipe's starting weights.

    Raises:
        KirieError: when there is no such architecture or its constructor refuses the arguments.
    """
    build: Any = model_class(recipe.name, own_code=True)
    known = inspect.signature(build).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        names = [name for name in known if name not in ("in_channels", "classes")]
        for name in recipe.arguments:
            if name not in names:
                raise KirieError(f"model.arguments has no {name!r:.60} for {recipe.name}{_nearest(name, names)}.")
    try:
        model: SegmentationModel = build(in_channels, classes, **recipe.arguments)
    except TypeError as error:
        raise KirieError(f"model.arguments do not fit {recipe.name}: {error}.") from error
    if recipe.start is not None:
        left = start_from(model, recipe.start)
        if left:
            more = f" and {len(left) - 4} more" if len(left) > 4 else ""
            say(f"{recipe.start} does not fit {', '.join(left[:4])}{more}; these start at random")
    return model


def start_from(model: SegmentationModel, path: str) -> list[str]:
    """Gives a model the weights of a model file where names and shapes agree; returns the names left as they were.

    Raises:
        KirieError: when the file cannot be loaded or nothing in it fits.
    """
    from kirie.models.file import load

    own, given = model.state_dict(), load(path).state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise KirieError(f"Nothing in {path} fits this model; is it of another architecture?")
    model.load_state_dict(fitting, strict=False)
    return sorted(set(own) - set(fitting))


def augment_settings(recipe: AugmentRecipe) -> AugmentSettings:
    """The augmentation a recipe describes.

    Raises:
        KirieError: when the preset or a changed field does not exist, or a value does not fit its field.
    """
    if recipe.preset not in PRESETS:
        raise KirieError(f"augment.preset: there is no {recipe.preset!r:.60}{_nearest(recipe.preset, list(PRESETS))}.")
    preset = PRESETS[recipe.preset]
    change: dict[str, Any] = {}
    known = [f.name for f in fields(AugmentSettings)]
    for name, value in recipe.change.items():
        if name not in known:
            raise KirieError(f"augment.change has no {name!r:.60}{_nearest(name, known)}.")
        now = getattr(preset, name)
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        kinds = (int,) if type(now) is int else (int, float)
        if isinstance(value, list | tuple) != isinstance(now, tuple) or any(type(n) not in kinds for n in numbers):
            wanted = "a list of numbers" if isinstance(now, tuple) else f"a number such as {now}"
            raise KirieError(f"augment.change.{name} must be {wanted}, got {value!r:.60}.")
        change[name] = tuple(value) if isinstance(value, list) else value
    return replace(preset, **change)


def own_callable(recipe: AugmentRecipe) -> Callable[..., Any] | None:
    """The user's augmentation function, imported; None when the recipe names none.

    Raises:
        KirieError: when it cannot be imported or called.
    """
    if recipe.own is None:
        return None
    try:
        found = look_up(recipe.own)
    except KirieError as error:
        raise KirieError(f"augment.own: {error}") from error
    if not callable(found):
        raise KirieError(f"augment.own must be package.module:function, got {recipe.own!r}.")
    function: Callable[..., Any] = found
    return function


_MOST = 10**9
_NUMBER = (0, math.inf)
_TRAIN_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, _MOST),
    "draws": (1, _MOST),
    "batch_size": (1, _MOST),
    "patch": (1, 2**16),
    "learning_rate": (math.ulp(0), math.inf),
    "weight_decay": _NUMBER,
    "momentum": (0, 1),
    "warmup": (0, 1),
    "milestones": (math.ulp(0), 1),
    "gamma": (math.ulp(0), 1),
    "accumulate": (1, _MOST),
    "clip": _NUMBER,
    "ema": (0, 1),
    "validate_every": (1, _MOST),
    "patience": (0, _MOST),
    "samples_every": (0, _MOST),
    "workers": (0, 1024),
    "seed": (0, 2**63),
}


def _check_ranges(section: str, values: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises a KirieError that names each number that is not at least the first and below the second of its range."""
    faults = []
    for name, (low, high) in ranges.items():
        value = getattr(values, name)
        for number in value if isinstance(value, list | tuple) else [value]:
            # What is no number at all is told by the reader, with its type.
            if isinstance(number, int | float) and not low <= number < high:
                least = "above 0" if low == math.ulp(0) else f"at least {low}"
                below = " and finite" if high == math.inf else f" and below {high:,}" if number >= high else ""
                faults.append(f"{section}.{name} must be {least}{below}, got {value!r:.60}")
    if faults:
        raise KirieError("; ".join(faults))


def _changed(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The values, themselves changed, after changes such as "train.epochs=40"."""
    for change in changes:
        place, equals, text = change.partition("=")
        names = [name.strip() for name in place.split(".")]
        if not equals or not all(names):
            raise KirieError(f"A change reads section.entry=value, got {change!r}.")
        inner = values
        for section in names[:-1]:
            if inner.get(section) is None:
                inner[section] = {}
            inner = inner[section]
            if not isinstance(inner, dict):
                raise KirieError(f"{place!r} leads nowhere: {section} is no section of the recipe.")
        inner[names[-1]] = parse_yaml(text, f"The value of {place.strip()}")
    return values


def _told(error: ValidationError) -> list[str]:
    """What is wrong with each entry, in words."""
    told: dict[str, str] = {}
    for fault in error.errors()[:8]:
        place, kind, message = ".".join(map(str, fault["loc"][:2])), fault["type"], fault["msg"]
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            words = f"{place} is no entry of a recipe{_near_entry(fault['loc'])}"
        elif kind == "missing":
            words = f"{place} is missing" if len(fault["loc"]) < 3 else f"{place} has too few values"
        elif kind == "value_error":  # raised by the dataclasses' own checks, which name the entry
            words = str(fault.get("ctx", {}).get("error", message)).rstrip(".")
        else:
            came = f", got {fault['input']!r:.60}" if fault["loc"] else ""
            words = f"{place}: {message[0].lower()}{message[1:]}{came}"
        # An entry that may be of two types has a fault for each.
        told[place] = f"{told[place]}, or {words.removeprefix(f'{place}: ')}" if place in told else words
    return list(told.values())


def _near_entry(place: Sequence[int | str]) -> str:
    name = str(place[-1])
    if len(place) > 1:
        section = _SECTIONS.get(str(place[0]))
        return _nearest(name, [f.name for f in fields(section)] if section else [])
    within = [section for section, kind in _SECTIONS.items() if name in {f.name for f in fields(kind)}]
    return f" (did you mean {within[0]}.{name}?)" if within else _nearest(name, list(_SECTIONS))


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {near[0]}?)" if near else f" (known are {', '.join(known)})"
