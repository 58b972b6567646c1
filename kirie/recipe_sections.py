"""The sections of a recipe: what each entry means, and which values it may have."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pydantic import ConfigDict

from kirie.criterion import build_loss
from kirie.data.augment import PRESETS, AugmentSettings
from kirie.data.folders import FolderSettings
from kirie.data.sampling import SamplingSettings
from kirie.errors import KirieError
from kirie.models import MODELS

STRICT = ConfigDict(extra="forbid")
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

    __pydantic_config__ = STRICT

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

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if self.name not in MODELS and not _OWN.fullmatch(self.name):
            raise KirieError(
                f"model.name: there is no {self.name!r:.60}{nearest(self.name, list(MODELS))}; your own class is "
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

    __pydantic_config__ = STRICT

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
class SamplingRecipe(SamplingSettings):
    """Which pictures an epoch draws more often, and what its patches must contain; see `SamplingSettings`."""

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        _check_ranges("sampling", self, {f.name: (0, 1) for f in fields(self) if f.name.startswith(("repeat", "hard"))})
        for name in ("positive_ratio", "rare_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise KirieError(f"sampling.{name} must be from 0 to 1, got {getattr(self, name)!r:.60}")
        if self.positive_ratio + self.rare_ratio > 1:
            raise KirieError(
                f"sampling.positive_ratio and rare_ratio are shares of the same patches, got {self.positive_ratio} and "
                f"{self.rare_ratio}, which is more than all of them"
            )


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

    __pydantic_config__ = STRICT

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


def augment_settings(recipe: AugmentRecipe) -> AugmentSettings:
    """The augmentation a recipe describes.

    Raises:
        KirieError: when the preset or a changed field does not exist, or a value does not fit its field.
    """
    if recipe.preset not in PRESETS:
        raise KirieError(f"augment.preset: there is no {recipe.preset!r:.60}{nearest(recipe.preset, list(PRESETS))}.")
    preset = PRESETS[recipe.preset]
    change: dict[str, Any] = {}
    known = [f.name for f in fields(AugmentSettings)]
    for name, value in recipe.change.items():
        if name not in known:
            raise KirieError(f"augment.change has no {name!r:.60}{nearest(name, known)}.")
        now = getattr(preset, name)
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        kinds = (int,) if type(now) is int else (int, float)
        if isinstance(value, list | tuple) != isinstance(now, tuple) or any(type(n) not in kinds for n in numbers):
            wanted = "a list of numbers" if isinstance(now, tuple) else f"a number such as {now}"
            raise KirieError(f"augment.change.{name} must be {wanted}, got {value!r:.60}.")
        change[name] = tuple(value) if isinstance(value, list) else value
    return replace(preset, **change)


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


def nearest(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not among the known ones: the nearest of them, or all."""
    near = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {near[0]}?)" if near else f" (known are {', '.join(known)})"
