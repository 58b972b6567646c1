"""A plan: the recipe that the rules give for a data set and a machine, with the reason for each of its entries."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kirie.data.batch import BatchPlan
from kirie.errors import KirieError
from kirie.planning.case import Case
from kirie.planning.rules import ENOUGH_STEPS, LADDER, RULES
from kirie.recipe import Recipe, one_line, parse_recipe, recipe_values

MOST_EPOCHS = 60  # or so: an epoch is a share of the time, however few pictures there are
MEASURED = 8  # times that a training is measured
MEASURING = 0.15  # of the time that measuring may take
CLOSING = 0.03  # of the time that is left for starting, saving and drawing

WIDTH = 120  # columns of the written recipe
RATIOS = {"sampling.positive_ratio", "sampling.rare_ratio"}
SECTIONS = ("data", "model", "augment", "sampling", "train")


class Pace(NamedTuple):
    """How long a recipe takes on a machine, in seconds: to begin, for a step, and to measure a picture."""

    start: float
    step: float
    picture: float


@dataclass(frozen=True)
class Plan:
    """A recipe with its reasons.

    Attributes:
        recipe: complete.
        reasons: by entry, such as "train.loss", why it is what it is.
        about: lines about the data, the machine and the time.
    """

    recipe: Recipe
    reasons: Mapping[str, str]
    about: tuple[str, ...]

    def text(self) -> str:
        """The recipe as YAML, its entries with their reasons."""
        values, lines = recipe_values(self.recipe), [f"# {line}" for line in self.about]
        shown: dict[str, list[str]] = {section: [] for section in SECTIONS}
        for entry, why in self.reasons.items():
            section, *names = entry.split(".")[:3]  # what lies deeper is shown with the whole that it belongs to
            place = values[section]
            for name in names[:-1]:
                place = place[name]
            indent = "  " * len(names)
            above = f"{indent[2:]}{names[0]}:"
            if len(names) > 1 and above not in shown[section]:
                shown[section].append(above)
            lines_of = _commented(f"{indent}{names[-1]}: {one_line(place[names[-1]])}", why, indent)
            if lines_of[-1] not in shown[section]:
                shown[section] += lines_of
        for section, entries in shown.items():
            if entries:
                lines += [f"{section}:", *entries]
        return "\n".join(lines) + "\n"


def _commented(line: str, why: str, indent: str) -> list[str]:
    """A line with its reason: behind it where there is room, else above it."""
    if not why or len(line) + len(why) + 3 <= WIDTH:
        return [f"{line} # {why}" if why else line]
    return [f"{indent}# {part}" for part in textwrap.wrap(why, WIDTH - len(indent) - 2)] + [line]


def make_plan(
    case: Case,
    path: str,
    *,
    minutes: float,
    pace_of: Callable[[Recipe, int], Pace],
    changes: Sequence[str] = (),
) -> Plan:
    """The recipe for a case, trained for so many minutes.

    Args:
        case: the task, the model, the data and the machine.
        path: of the data set.
        minutes: the time that the training may take.
        pace_of: how long a recipe for so many pictures takes here; asked only where the number of epochs follows from
            it.
        changes: entries that the user sets, such as "train.epochs=40"; they take the place of what the rules say.

    Raises:
        KirieError: when a change does not fit or is a whole section, or the time is not above 0.
    """
    if not 0 < minutes < math.inf:
        raise KirieError(f"A training takes more than 0 minutes, got {minutes}.")
    asked = {change.partition("=")[0].strip() for change in changes}
    whole = [entry for entry in asked if entry in SECTIONS]
    if whole:
        raise KirieError(
            f"A plan sets the entries of {whole[0]} one by one: give those that are to be otherwise, such as "
            "train.epochs=40, and not the whole section."
        )
    values: dict[str, Any] = {"data": {"path": path}}
    reasons: dict[str, str] = {"data.path": ""}
    for rule in RULES:
        if rule.entry in RATIOS and asked & RATIOS:
            continue  # they share the patches: what is asked of one may leave no room for the rule's other
        if rule.entry not in reasons and not _covered(rule.entry, asked) and rule.when(case):
            value, reasons[rule.entry] = rule.of(case)
            _set(values, rule.entry, value)
    for entry, sizes in LADDER[case.task] if case.small else ():
        if not _covered(entry, asked):
            _set(values, entry, sizes[0])
            reasons[entry] = "the smallest, which is quick"
    recipe = parse_recipe(values, changes)
    about = _about(case, path)
    if "train.epochs" not in asked:
        recipe, timed, told = _timed(case, values, changes, asked, minutes, pace_of)
        reasons |= timed
        about += told
    # What is asked within an entry of several values, such as augment.change.scale, is told with the whole of it.
    reasons |= {entry: "as asked" for entry in asked if entry != "data.path" and not _covered(entry, reasons)}
    return Plan(recipe, _in_order(reasons), about)


def _timed(
    case: Case,
    values: dict[str, Any],
    changes: Sequence[str],
    asked: set[str],
    minutes: float,
    pace_of: Callable[[Recipe, int], Pace],
) -> tuple[Recipe, dict[str, str], tuple[str, ...]]:
    """The recipe with the size of the model and the number of epochs that fill the time, and the reasons."""
    reasons: dict[str, str] = {}
    budget = 60 * minutes * (1 - CLOSING)
    recipe = parse_recipe(values, changes)
    pace = pace_of(recipe, case.facts.pictures)
    for entry, sizes in LADDER[case.task] if case.small else ():
        if _covered(entry, asked) or entry in asked:
            continue
        reasons[entry] = f"{_steps(budget, pace):,.0f} steps fit into the time: too few for a larger one"
        for size in sizes[1:]:
            if _steps(budget, pace) < 2 * ENOUGH_STEPS:
                break
            larger = _copy(values)
            _set(larger, entry, size)
            other = pace_of(parse_recipe(larger, changes), case.facts.pictures)
            if _steps(budget, other) < ENOUGH_STEPS:
                break
            values, pace = larger, other
            reasons[entry] = f"the largest with which {ENOUGH_STEPS:,} steps fit into the time"
    recipe = parse_recipe(values, changes)
    batch, pictures = recipe.train.batch_size, case.facts.pictures
    once = pace.picture * case.facts.measured
    times = max(1, min(MEASURED, int(MEASURING * budget / max(once, 1e-9))))
    left = max(budget - pace.start - times * once, pace.step)
    steps = max(1, round(left / pace.step))
    draws = recipe.train.draws
    if "train.draws" not in asked:
        draws = max(1, round(steps * batch / (pictures * MOST_EPOCHS)))
    epoch = len(BatchPlan(pictures, batch, draws))
    epochs = max(1, round(steps / epoch))
    every = recipe.train.validate_every if "train.validate_every" in asked else max(1, -(-epochs // times))
    told = {
        "train.epochs": f"{pace.step:.2f} s a step of {batch} patches, timed here: {epochs * epoch:,} steps in "
        f"{_minutes(epochs * epoch * pace.step)}",
        "train.draws": f"so often each of the {pictures} pictures is drawn in an epoch, with another patch each time",
        "train.validate_every": f"{case.facts.measured} pictures are measured in {once:.0f} s",
        "train.samples_every": "sample pictures at the end",
    }
    chosen = {"epochs": epochs, "draws": draws, "validate_every": every, "samples_every": epochs}
    for name, value in chosen.items():
        if f"train.{name}" not in asked:
            _set(values, f"train.{name}", value)
            reasons[f"train.{name}"] = told[f"train.{name}"]
    learning, measuring = epochs * epoch * pace.step, -(-epochs // every) * once
    whole = pace.start + learning + measuring
    about: tuple[str, ...] = (f"planned for {minutes:g} minutes; it should take {_minutes(whole)}",)
    if whole > 1.2 * 60 * minutes:
        longest = (
            f"one pass over the {pictures} pictures"
            if learning >= measuring
            else f"measuring the {case.facts.measured} pictures of the validation split"
        )
        about += (f"{longest} takes longer than that: give it more minutes",)
    return parse_recipe(values, changes), reasons, about


def _covered(entry: str, others: Iterable[str]) -> bool:
    """Whether an entry lies within one of the others."""
    return any(entry.startswith(f"{other}.") for other in others)


def _steps(budget: float, pace: Pace) -> float:
    return budget * (1 - MEASURING) / pace.step


def _about(case: Case, path: str) -> tuple[str, ...]:
    facts = case.facts
    objects: tuple[str, ...] = ()
    if facts.objects is not None and facts.diameters is not None:
        low, middle, high = facts.diameters
        objects = (
            f"{facts.objects[0]} objects in a middle picture, {facts.objects[1]} at most; {middle:.0f} pixels across, "
            f"90 % within {low:.0f} to {high:.0f}; {100 * (facts.touching or 0):.0f} % touch another",
        )
    return (
        f"{path}: {facts.pictures} pictures to learn from, {facts.measured} to measure on; {facts.read} looked at",
        f"{'grey' if facts.grey else 'colour'} pictures of about {facts.height} x {facts.width} pixels, "
        f"{100 * facts.foreground:.1f} % foreground",
        *objects,
        f"on {case.machine.words}",
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} s"


def _set(values: dict[str, Any], entry: str, value: Any) -> None:
    *sections, name = entry.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _in_order(reasons: Mapping[str, str]) -> dict[str, str]:
    """Entries by section, as a recipe has them, those of one part together."""
    known = {section: place for place, section in enumerate(SECTIONS)}

    def place(entry: str) -> tuple[int, bool, str]:
        section, *names = entry.split(".")
        return known[section], len(names) > 1, names[0] if len(names) > 1 else ""

    return {entry: reasons[entry] for entry in sorted(reasons, key=place)}
