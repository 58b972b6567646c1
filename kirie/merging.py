"""One panoptic map of a map of classes and a list of objects, and the way back for what such models learn from.

The merge of Kirillov, Girshick, He and Dollar, "Panoptic Feature Pyramid Networks", CVPR 2019 (arXiv 1901.02446), as
Detectron2 defines its details: objects first, the surest on top, then stuff where no object is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from kirie.classes import BACKGROUND, Classes
from kirie.counting import occurrences
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.results import Instances, PanopticMap, Segment, SemanticMap, to_semantic

THINGS = "things"  # what a semantic head calls the one class of all objects


@dataclass(frozen=True)
class MergeSettings:
    """Which objects and which stuff enter a panoptic map.

    Attributes:
        score: objects score at least so much.
        overlap: an object goes of which more than this share is covered by surer ones.
        stuff_area: stuff of fewer pixels becomes void.

    Raises:
        KirieError: when a share is outside 0..1 or the area no whole number of 0 or more.
    """

    score: float = 0.5
    overlap: float = 0.5
    stuff_area: int = 4096

    def __post_init__(self) -> None:
        for name, share in (("score", self.score), ("overlap", self.overlap)):
            if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1:
                raise KirieError(f"The {name} of a merge is a number from 0 to 1, got {share!r:.60}.")
        if isinstance(self.stuff_area, bool) or not isinstance(self.stuff_area, Integral) or self.stuff_area < 0:
            raise KirieError(f"stuff_area is a whole number of pixels from 0 on, got {self.stuff_area!r:.60}.")
        # NumPy's numbers are welcome, and a model file holds plain ones.
        for name, value in (("score", float(self.score)), ("overlap", float(self.overlap))):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "stuff_area", int(self.stuff_area))


@dataclass(frozen=True)
class Joint:
    """How the classes of a semantic and of an instance model make up those of a panoptic map.

    Attributes:
        classes: of the panoptic map.
        stuff: for each semantic class its number in `classes`, -1 where it is no stuff.
        things: for each instance class its number in `classes`.
    """

    classes: Classes
    stuff: tuple[int, ...]
    things: tuple[int, ...]


def joint_classes(semantic: Classes, instance: Classes) -> Joint:
    """The classes of what two models see together: the things of one, then the stuff of the other.

    Stuff is what the semantic model knows beside the background, `things`, and the classes that the instance model
    finds as objects, which are told by their names. The numbers that their files have stay where they are above 0 and
    each is of one class, as of two models of COCO panoptic; otherwise all are numbered anew.

    Raises:
        KirieError: when the semantic model knows no stuff, or names of the two differ in nothing but capitals.
    """
    known = {*instance.names, BACKGROUND, THINGS}
    folded = {name.casefold(): name for name in instance.names}
    for name in semantic.names:
        if name not in known and name.casefold() in folded:
            raise KirieError(
                f"The semantic model's {name!r} and the instance model's {folded[name.casefold()]!r} differ in "
                "capitals alone, and would be stuff beside things of the same kind: train both with one spelling."
            )
    stuff = [label for label, name in enumerate(semantic.names) if name not in known]
    if not stuff:
        raise KirieError(
            f"The semantic model knows nothing but things and background ({', '.join(semantic.names[:8])}): there is "
            "no stuff to add to the objects. A panoptic map of objects alone is what the instance model gives."
        )
    count = len(instance)
    ids = (*instance.ids, *(semantic.ids[label] for label in stuff))
    classes = Classes(
        (*instance.names, *(semantic.names[label] for label in stuff)),
        (*instance.colors, *(semantic.colors[label] for label in stuff)),
        (True,) * count + (False,) * len(stuff),
        ids if min(ids) > 0 and len(set(ids)) == len(ids) else (),
    )
    place = {label: count + row for row, label in enumerate(stuff)}
    return Joint(classes, tuple(place.get(label, -1) for label in range(len(semantic))), tuple(range(count)))


def split_classes(classes: Classes) -> tuple[Classes, Classes, Joint]:
    """The classes of a semantic head (`things` first, then the stuff) and of an instance head, out of panoptic ones.

    Raises:
        KirieError: when there are no things or no stuff.
    """
    things = [label for label, thing in enumerate(classes.things) if thing]
    stuff = [label for label, thing in enumerate(classes.things) if not thing]
    if not things or not stuff:
        raise KirieError(
            f"A panoptic model tells things (objects) from stuff; of the {len(classes)} classes {len(things)} are "
            "things. Mark the things, in classes.json or in the `categories` of the COCO panoptic file."
        )
    name = THINGS
    while name in classes.names:
        name += "*"
    semantic = Classes((name, *(classes.names[i] for i in stuff)), ((82, 18, 128), *(classes.colors[i] for i in stuff)))
    instance = classes.subset(things)
    return semantic, instance, Joint(classes, (-1, *stuff), tuple(things))


def merge(
    semantic: SemanticMap, instances: Instances, joint: Joint | None = None, settings: MergeSettings | None = None
) -> PanopticMap:
    """The panoptic map of what a semantic and an instance model see in one picture.

    Objects that score enough are laid down from the surest on; each takes the pixels that are still free, unless more
    than a share of it is covered already. Then each stuff class takes what is free of its pixels, if that is enough.
    What is left is void. Segments are numbered in this order from 1 on.

    Args:
        semantic: classes of all pixels, of the semantic classes of `joint`.
        instances: objects of the same picture, of the instance classes of `joint`.
        joint: which class becomes which; as `joint_classes` tells it by their names when None.
        settings: the limits; Detectron2's when None.

    Raises:
        KirieError: when the two are of different size or their classes are not those of `joint`.
    """
    joint, settings = joint or joint_classes(semantic.classes, instances.classes), settings or MergeSettings()
    _check(semantic, instances, joint)
    ids = np.zeros(semantic.size, np.int32)
    segments: list[Segment] = []
    sure = np.flatnonzero(instances.scores >= settings.score)
    order = sure[np.argsort(-instances.scores[sure], kind="stable")]
    for row in order.tolist():
        (crop,) = instances.masks[[row]].crops()  # one at a time, as all of them may be gigabytes
        area = _take(ids, crop, len(segments) + 1, settings.overlap)
        if area:
            label, score = joint.things[instances.labels[row]], float(instances.scores[row])
            segments.append(Segment(len(segments) + 1, label, True, score, area))
    segments += _fill(ids, semantic, joint.stuff, len(segments) + 1, settings.stuff_area)
    return PanopticMap(ids, tuple(segments), joint.classes)


def split(truth: PanopticMap, classes: tuple[Classes, Classes, Joint]) -> tuple[SemanticMap, Instances]:
    """What a semantic and an instance head learn from a panoptic truth: a map of classes, and objects.

    All pixels of things, those of crowds too, are the first class of the map; void stays void. Crowds stay crowds.

    Args:
        truth: of the panoptic classes.
        classes: what `split_classes` made of these.

    Raises:
        KirieError: when the truth has more or fewer classes.
    """
    semantic, instance, joint = classes
    if len(truth.classes) != len(joint.classes):
        raise KirieError(f"The truth has {len(truth.classes)} classes, the model {len(joint.classes)}.")
    table = np.full(truth.classes.void + 1, semantic.void, np.int32)
    table[list(joint.things)] = 0
    table[list(joint.stuff[1:])] = np.arange(1, len(joint.stuff))
    row = {label: number for number, label in enumerate(joint.things)}
    things = [segment for segment in truth.segments if segment.label in row]
    objects = Instances.from_masks(
        Masks.from_ids(truth.ids, [segment.id for segment in things]),
        [row[segment.label] for segment in things],
        instance,
        crowd=np.array([segment.crowd for segment in things], bool),
    )
    labels = table[to_semantic(truth).labels]
    return SemanticMap(labels.astype(np.uint8) if semantic.void == 255 else labels, semantic), objects


def _take(ids: npt.NDArray[np.int32], crop: Crop, number: int, overlap: float) -> int:
    """Gives an object the free pixels of its mask, in place; how many, 0 where it is empty or covered too much."""
    height, width = crop.bits.shape
    view = ids[crop.top : crop.top + height, crop.left : crop.left + width]
    free = crop.bits & (view == 0)
    whole, left = int(crop.bits.sum()), int(free.sum())
    if not left or (whole - left) / whole > overlap:
        return 0
    view[free] = number
    return left


def _fill(
    ids: npt.NDArray[np.int32], semantic: SemanticMap, stuff: Sequence[int], first: int, least: int
) -> list[Segment]:
    """Gives each class of stuff the free pixels that have it, in place; its segments."""
    void = semantic.classes.void
    free = np.where(ids == 0, semantic.labels, void)
    counts = occurrences(free, void + 1)
    table = np.zeros(void + 1, np.int32)
    segments: list[Segment] = []
    for label, panoptic in enumerate(stuff):
        if panoptic >= 0 and counts[label] >= max(least, 1):
            number = first + len(segments)
            table[label] = number
            segments.append(Segment(number, panoptic, False, 1.0, int(counts[label])))
    ids += table[free]
    return segments


def _check(semantic: SemanticMap, instances: Instances, joint: Joint) -> None:
    if semantic.size != instances.size:
        raise KirieError(
            f"The map of classes has the size {semantic.size} and the objects {instances.size} (H, W): both must be of "
            "one picture."
        )
    counts = (len(semantic.classes), len(instances.classes))
    if counts != (len(joint.stuff), len(joint.things)):
        raise KirieError(
            f"The map has {counts[0]} classes and the objects {counts[1]}; expected {len(joint.stuff)} and "
            f"{len(joint.things)}."
        )
