"""What the rules of a plan look at: task, model, data and machine, and what follows at once from them."""

from __future__ import annotations

from dataclasses import dataclass

from kirie.planning.facts import DataFacts
from kirie.planning.machine import Machine

FIRST = {"semantic": "unet", "instance": "yolact", "panoptic": "panoptic_fpn"}
WANTED_DIAMETER, MOST_ENLARGED = 32.0, 2.0  # pixels of the middle object, which a network of stride 4 to 32 sees well
SMALL = 24.0  # pixels of an object, below which the usual anchors are too large
CROWDED = 100  # objects in a picture


@dataclass(frozen=True)
class Case:
    """What the rules look at.

    Attributes:
        task: what is learned.
        model: a row of `MODELS`.
        facts: of the data.
        machine: that trains.
        own_split: whether the data say themselves which pictures are for validation.
    """

    task: str
    model: str
    facts: DataFacts
    machine: Machine
    own_split: bool

    @property
    def semantic(self) -> bool:
        """Whether classes of pixels are learned."""
        return self.task == "semantic"

    @property
    def cpu(self) -> bool:
        """Whether there is no accelerator."""
        return self.machine.device == "cpu"

    @property
    def small(self) -> bool:
        """Whether the model is one of those that the rules know from random weights (`FIRST`)."""
        return self.model == FIRST[self.task]

    @property
    def has_background(self) -> bool:
        """Whether there are pixels of no class that is looked for."""
        return self.facts.names[0] == "background"

    @property
    def diameter(self) -> float:
        """Of the middle object in pixels; 0 where labels do not tell objects apart."""
        return self.facts.diameters[1] if self.facts.diameters else 0.0

    @property
    def small_objects(self) -> bool:
        """Whether many objects are smaller than the smallest of the usual anchors, after enlarging."""
        return self.facts.diameters is not None and self.facts.diameters[0] * self.enlarged < SMALL

    @property
    def crowded(self) -> bool:
        """Whether a picture has more objects than are looked for by default."""
        return self.facts.objects is not None and self.facts.objects[1] > CROWDED

    @property
    def enlarged(self) -> float:
        """By how much pictures are enlarged for objects to be large enough; 1 for not at all."""
        if not self.diameter or self.task != "instance":
            return 1.0
        factor = min(MOST_ENLARGED, WANTED_DIAMETER / self.diameter)
        return factor if factor >= 1.25 else 1.0

    @property
    def short_side(self) -> int:
        """Of the enlarged pictures, in pixels."""
        return max(32, round(min(self.facts.height, self.facts.width) * self.enlarged / 32) * 32)

    @property
    def patch(self) -> tuple[int, int]:
        """(H, W) of a patch: no larger than the middle picture, in steps of 32 pixels."""
        most = 256 if self.cpu else 512
        high, wide = (
            min(most, max(32, int(side * self.enlarged) // 32 * 32)) for side in (self.facts.height, self.facts.width)
        )
        return high, wide
