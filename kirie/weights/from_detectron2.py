"""Checkpoints of Detectron2 (code: Apache-2.0): which network they hold, Panoptic FPN, and Semantic FPN.

Written from the tensor names of its model zoo's Panoptic FPN and of the files that it writes in training:
`sem_seg_head` is the semantic head, whose class 0 is all things in a Panoptic FPN; the rest of that is a Mask R-CNN.
Backbone, pyramid and pixels are as in `detectron2_backbone.py`. No Semantic FPN is public.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from kirie.class_lists import ADE20K, CITYSCAPES, COCO_PANOPTIC, COCO_STUFF
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.weights import mask_rcnn_detectron2
from kirie.weights.detectron2_backbone import BODY, PIXELS, translated
from kirie.weights.structure import axis, known_classes
from kirie.weights.translation import Translation

_SEMANTIC = "sem_seg_head."
_CLASSES = {
    "COCO panoptic: all things as one, then the 53 stuff classes": COCO_STUFF,
    "ADE20K": ADE20K,
    "Cityscapes": CITYSCAPES,
}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has the names of Detectron2's backbones, whatever heads are on them."""
    return f"{BODY}stem.conv1.weight" in state or "backbone.stem.conv1.weight" in state


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The model of a state dict in this layout.

    Raises:
        KirieError: when kirie does not build its architecture, or an entry is unknown, missing or no tensor.
    """
    for kind in _KINDS:
        if all(any(name.startswith(part) for name in state) for part in kind.parts):
            if kind.translate is None:
                raise KirieError(f"It holds {kind.words}, an architecture that kirie does not build yet.")
            return kind.translate(state)
    heads = sorted({name.partition(".")[0] for name in state} - {"backbone", *PIXELS})
    raise KirieError(f"Its heads are none that kirie knows: {', '.join(heads)[:120] or 'it has none'}.")


def _semantic_fpn(state: Mapping[str, Tensor]) -> Translation:
    shared = translated(state, _semantic_head, "A Semantic FPN of Detectron2")
    classes, assumed = known_classes(axis(state, "sem_seg_head.predictor.weight", 0), _CLASSES)
    return Translation(
        architecture="semantic_fpn",
        in_channels=shared.in_channels,
        classes=classes,
        arguments=shared.arguments | {"width": axis(state, "sem_seg_head.p2.0.weight", 0)},
        state=shared.state,
        dropped=shared.dropped,
        assumed=assumed | shared.assumed,
    )


def _panoptic_fpn(state: Mapping[str, Tensor]) -> Translation:
    """A Mask R-CNN with a semantic head beside it."""
    words = "A Panoptic FPN of Detectron2"
    found = mask_rcnn_detectron2.translate({n: t for n, t in state.items() if not n.startswith(_SEMANTIC)}, words)
    renamed = {f"instance.{name}": tensor for name, tensor in found.state.items()}
    for name, tensor in state.items():
        if name.startswith(_SEMANTIC):
            place = _semantic_head(name)
            if place is None or not isinstance(tensor, Tensor):
                raise KirieError(f"{words} has no entry {name!r:.120}.")
            renamed[place.replace("head.", "semantic.", 1)] = tensor
    things = axis(state, "roi_heads.mask_head.predictor.weight", 0)
    stuff = axis(state, f"{_SEMANTIC}predictor.weight", 0) - 1
    assumed = {name: words for name, words in found.assumed.items() if name != "classes"}
    if (things, stuff) == (sum(COCO_PANOPTIC.things), len(COCO_STUFF) - 1):
        classes = COCO_PANOPTIC
        assumed["classes"] = "the 80 things and 53 classes of stuff are taken for those of COCO panoptic, in its order"
    else:
        names = (*(f"thing {index}" for index in range(things)), *(f"stuff {index}" for index in range(stuff)))
        classes = Classes(names, things=(True,) * things + (False,) * stuff)
    return replace(
        found,
        architecture="panoptic_fpn",
        classes=classes,
        arguments={**found.arguments, "width": axis(state, f"{_SEMANTIC}p2.0.weight", 0)},
        state=renamed,
        assumed=assumed,
    )


def _semantic_head(name: str) -> str | None:
    if match := re.fullmatch(r"sem_seg_head\.predictor\.(weight|bias)", name):
        return f"head.predictor.{match[1]}"
    match = re.fullmatch(r"sem_seg_head\.p([2-5])\.(\d+)(\.norm)?\.(\w+)", name)
    return match and f"head.branches.{int(match[1]) - 2}.{match[2]}.{1 if match[3] else 0}.{match[4]}"


class _Kind(NamedTuple):
    """What a file holds when names begin with each of `parts`, and its translator, if kirie builds it."""

    parts: tuple[str, ...]
    words: str
    translate: Callable[[Mapping[str, Tensor]], Translation] | None = None


_KINDS = (  # the first that fits counts
    _Kind(("proposal_generator.", "roi_heads.", "sem_seg_head."), "a Panoptic FPN", _panoptic_fpn),
    _Kind(("roi_heads.keypoint_head.",), "a Keypoint R-CNN"),
    _Kind(("roi_heads.mask_head.",), "a Mask R-CNN", mask_rcnn_detectron2.translate),
    _Kind(("roi_heads.",), "a Faster R-CNN, which finds boxes without masks"),
    _Kind(("proposal_generator.",), "a region proposal network, which finds boxes without classes"),
    _Kind(("head.cls_subnet.",), "a RetinaNet, which finds boxes without masks"),
    _Kind(("backbone.stem.", "sem_seg_head."), "a DeepLab of Detectron2's projects"),
    _Kind(("sem_seg_head.p2.", "sem_seg_head.predictor."), "a Semantic FPN", _semantic_fpn),
)
