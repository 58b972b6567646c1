"""The rules of a plan: which entry of a recipe is set to what, when, and why.

Of the rules of an entry the first whose `when` holds decides. `why` is said in the recipe beside the entry, with what
was measured. What no rule sets is as the recipe's defaults have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kirie.planning.case import Case


@dataclass(frozen=True)
class Rule:
    """An entry of a recipe, when it is set, to what, and why.

    Attributes:
        entry: such as "train.loss".
        when: of which cases the rule speaks.
        value: what the entry is set to, or how that follows from the case.
        why: a sentence, or how it follows.
    """

    entry: str
    when: Callable[[Case], bool]
    value: Any
    why: str | Callable[[Case], str]

    def of(self, case: Case) -> tuple[Any, str]:
        """Value and reason for a case."""
        value = self.value(case) if callable(self.value) else self.value
        return value, self.why(case) if callable(self.why) else self.why


LADDER: dict[str, tuple[tuple[str, tuple[Any, ...]], ...]] = {
    # What of a model grows while enough steps fit into the time.
    "semantic": (("model.arguments.width", (16, 32, 64)),),
    "instance": (("model.arguments.encoder", ("resnet18", "resnet34", "resnet50")),),
    "panoptic": (("model.arguments.encoder", ("resnet18", "resnet34", "resnet50")),),
}
ENOUGH_STEPS = 2500  # of a training, after which a larger model is worth more than more steps

SPARSE = 0.05  # share of pixels, below which foreground is rare
UPRIGHT = 0.05  # difference of the halves of pictures in foreground, from which on they have an up and a down
EMPTY = 0.1  # share of random patches, from which on patches without foreground are too many
RARE = 0.02  # share of pixels, below which a class is rare
FEW_PICTURES = 30


def _always(case: Case) -> bool:
    return True


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _split_why(case: Case) -> str:
    facts = case.facts
    if case.own_split:
        return f"the data's own: {facts.pictures} to learn from, {facts.measured} to measure on"
    drawn = f"the data name none, so it is drawn by a seed: {facts.measured} of {facts.pictures + facts.measured}"
    few = "; so few give a rough score, `kirie train RECIPE --folds 5` measures on all"
    return drawn + (few if facts.pictures + facts.measured < FEW_PICTURES else "")


def _rare(case: Case) -> bool:
    many = len(case.facts.names) - int(case.has_background) > 1
    return case.semantic and many and 0 < case.facts.rarest[1] < RARE


def _rare_words(case: Case) -> str:
    name, share = case.facts.rarest
    return f"{name} has {_percent(share)} of the pixels"


def _sparse(case: Case) -> bool:
    return case.semantic and case.has_background and case.facts.foreground < SPARSE


def _flat(case: Case) -> bool:
    return case.facts.upright < UPRIGHT


def _many_sizes(case: Case) -> bool:
    diameters = case.facts.diameters
    return not case.semantic and diameters is not None and diameters[2] > 2 * diameters[0]


def _changes(case: Case) -> dict[str, float]:
    """Of the augmentation, what is measured to differ among the pictures and more of which is safe to show."""
    change = {"brightness_contrast": 0.5, "gamma": 0.3}
    if _flat(case):
        change |= {"flip_vertical": 0.5, "rotate90": 0.75}
    if _many_sizes(case):
        change["scale"] = 0.25
    if not case.semantic and not case.facts.grey:
        change["hue"] = 0.3
    return change


def _changes_words(case: Case) -> str:
    facts, change = case.facts, _changes(case)
    differ = f"foreground of the upper and lower halves differs by {_percent(facts.upright)}"
    told = [differ + (": no up and down" if _flat(case) else ", so never upside down")]
    if "scale" in change and facts.diameters:
        told.append(f"objects of {facts.diameters[0]:.0f} to {facts.diameters[2]:.0f} pixels: scales")
    if "hue" in change:
        told.append("colour pictures: hues")
    return "; ".join(told)


def _room(case: Case) -> int:
    return 8 if case.machine.own_memory >= 6 * 2**30 else 4


def _task_words(case: Case) -> str:
    objects = case.facts.objects
    if objects is None:
        return "what the labels serve: classes of pixels"
    if case.semantic:
        return "the labels tell objects apart, of which areas are learned; data.gap is for counting them"
    instead = "" if case.task == "panoptic" else "; --model unet learns classes of pixels instead"
    return f"what the labels serve: {case.task} truth{instead}"


def _unet(case: Case) -> bool:
    return case.semantic and case.small


def _yolact(case: Case) -> bool:
    return case.task == "instance" and case.small


def _panoptic_fpn(case: Case) -> bool:
    return case.task == "panoptic" and case.small


def _rare_objects(case: Case) -> bool:
    rare = case.facts.rare_pictures
    return not case.semantic and rare is not None and rare[1] > 10 * rare[0]


def _rare_objects_words(case: Case) -> str:
    fewest, most = case.facts.rare_pictures or (0, 0)
    return f"of {case.facts.read} pictures the rarest class is in {fewest}, the commonest in {most}"


def _most_objects(case: Case) -> int:
    return (case.facts.objects or (0, 0))[1]


def _smallest(case: Case) -> float:
    """Pixels across an object of the smallest 5 %, as the model sees it."""
    return (case.facts.diameters or (0.0,))[0] * case.enlarged


RULES: tuple[Rule, ...] = (
    # The data.
    Rule("data.task", _always, lambda case: case.task, _task_words),
    Rule("data.train", _always, "train", _split_why),
    Rule(
        "data.short_side", lambda case: case.enlarged > 1, lambda case: case.short_side,
        lambda case: f"the middle object is {case.diameter:.0f} pixels across: enlarged {case.enlarged:.1f} times",
    ),
    # The model.
    Rule("model.name", lambda case: case.small, lambda case: case.model, "learns from few pictures, without weights"),
    Rule("model.name", _always, lambda case: case.model, "as asked; what follows is usual, not measured for it"),
    Rule("model.arguments.bias", _unet, False, "batch norm has one of its own"),
    Rule(
        "model.arguments.standardise", _unet, True,
        lambda case: "mean grey levels from {:.0f} to {:.0f}: each picture is standardised".format(
            *case.facts.brightness
        ),
    ),
    Rule("model.arguments.channels", lambda case: not case.semantic and case.small, 64, "of the pyramid: small"),
    Rule(
        "model.arguments.scales", lambda case: _yolact(case) and case.small_objects, [16, 32, 64, 128, 256],
        lambda case: f"anchors: 5 % of the objects are under {_smallest(case):.0f} pixels across",
    ),
    Rule(
        "model.arguments.candidates", lambda case: _yolact(case) and case.crowded, lambda case: 2 * _most_objects(case),
        lambda case: f"the fullest picture has {_most_objects(case)} objects",
    ),
    Rule(
        "model.arguments.max_detections", lambda case: _yolact(case) and case.crowded,
        lambda case: 2 * _most_objects(case), "likewise",
    ),
    Rule("model.arguments.shown_threshold", _yolact, 0.4, "what a short training is less sure of is often nothing"),
    Rule("model.arguments.norm", _panoptic_fpn, True, "without it, random weights take many times as long to learn"),
    Rule("model.arguments.anchor_sizes", _panoptic_fpn, [16, 32, 64, 128, 256], "for pictures at their own size"),
    Rule("model.arguments.box_width", _panoptic_fpn, 256, "a small model"),
    Rule("model.arguments.mask_convs", _panoptic_fpn, 2, "likewise"),
    Rule("model.arguments.mask_width", _panoptic_fpn, 64, "likewise"),
    Rule("model.arguments.regions", _panoptic_fpn, 128, "of a picture that learn: twice as quick as with 512"),
    Rule("model.arguments.width", _panoptic_fpn, 64, "of the semantic head: a small model"),
    Rule("model.arguments.stuff_area", _panoptic_fpn, 256, "smaller areas of stuff are void"),
    # What is shown.
    Rule("augment.preset", _always, "light", "flips, small turns and shifts, which suit any picture"),
    Rule("augment.change", _always, _changes, _changes_words),
    Rule(
        "sampling.positive_ratio",
        lambda case: case.facts.empty_patches > EMPTY and (not case.semantic or case.has_background),
        lambda case: 0.5 if case.facts.empty_patches > 0.5 else 0.33,
        lambda case: f"{_percent(case.facts.empty_patches)} of random patches hold no foreground",
    ),
    Rule(
        "sampling.rare_ratio", _rare, 0.5,
        lambda case: f"{_rare_words(case)}: half of the patches are placed by the rarity of a class",
    ),
    Rule("sampling.repeat_threshold", _rare_objects, 0.05, _rare_objects_words),
    # How it is learned.
    Rule(
        "train.patch", _always, lambda case: list(case.patch),
        lambda case: f"the middle picture has {case.facts.height} x {case.facts.width} pixels"
        + (" before it is enlarged" if case.enlarged > 1 else ""),
    ),
    Rule("train.batch_size", lambda case: case.task == "panoptic", 4, "its heads hold much of each picture"),
    Rule(
        "train.batch_size", _always, _room,
        lambda case: f"fits into {case.machine.own_memory / 2**30:.0f} GiB of memory",
    ),
    Rule(
        "train.loss", _sparse, "dice+ce",
        lambda case: f"foreground is {_percent(case.facts.foreground)} of the pixels: Dice does not see the background",
    ),
    Rule("train.loss", lambda case: case.semantic, "ce+dice", "each pixel, and each class as a whole"),
    Rule(
        "train.class_weights", _rare, "balanced",
        lambda case: f"{_rare_words(case)}: classes weigh by the inverse root of their share",
    ),
    Rule("train.learning_rate", _unet, 3e-3, "what a narrow U-Net with batch norm bears"),
    Rule("train.learning_rate", _yolact, 2e-3, "what a small YOLACT bears"),
    Rule("train.learning_rate", _always, 1e-3, "the usual of AdamW"),
)  # fmt: skip
