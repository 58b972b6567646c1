"""Recipes: one flat, typed, complete description of a training, read strictly from YAML."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.lookup import look_up
from kirie.models import model_class
from kirie.models.contract import SegmentationModel
from kirie.progress import say
from kirie.reading.strict_yaml import PLAIN_FLOAT, parse_yaml, read_yaml
from kirie.recipe_sections import STRICT, AugmentRecipe, DataRecipe, ModelRecipe, SamplingRecipe, TrainRecipe, nearest


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete training: data, model, augmentation, sampling, training."""

    data: DataRecipe
    model: ModelRecipe = field(default_factory=ModelRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    sampling: SamplingRecipe = field(default_factory=SamplingRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if self.data.short_side is not None and self.augment.short_sides:
            raise KirieError("data.short_side and augment.short_sides both resize the pictures: leave out one of them")
        if self.train.patch is None and self.sampling.places_patches:
            raise KirieError(
                "sampling.positive_ratio and sampling.rare_ratio place patches, but train.patch is null, which takes "
                "whole pictures: leave one of them out"
            )


_SECTIONS = {
    "data": DataRecipe, "model": ModelRecipe, "augment": AugmentRecipe, "sampling": SamplingRecipe,
    "train": TrainRecipe,
}  # fmt: skip
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


def one_line(value: Any) -> str:
    """A value of a recipe as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


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
                raise KirieError(f"model.arguments has no {name!r:.60} for {recipe.name}{nearest(name, names)}.")
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
        return nearest(name, [f.name for f in fields(section)] if section else [])
    within = [section for section, kind in _SECTIONS.items() if name in {f.name for f in fields(kind)}]
    return f" (did you mean {within[0]}.{name}?)" if within else nearest(name, list(_SECTIONS))
