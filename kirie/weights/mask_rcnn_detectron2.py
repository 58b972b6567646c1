"""Mask R-CNNs of Detectron2 over a feature pyramid, of its model zoo or trained with it (code: Apache-2.0).

Written from the tensor names of the releases: `proposal_generator.rpn_head`, `roi_heads.box_head` (`fcN`, with `convN`
before them where there are any), `roi_heads.box_predictor` (the background is the last class) and `roi_heads.mask_head`
(`mask_fcnN`, `deconv`, `predictor`). Files of old versions hold the anchors as well, which tell their sizes and ratios.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kirie.class_lists import COCO
from kirie.errors import KirieError
from kirie.models.contract import InputFacts
from kirie.weights.detectron2_backbone import translated
from kirie.weights.structure import axis, count, known_classes
from kirie.weights.translation import Translation

HEADS = "roi_heads."
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
_PLACES = {
    "proposal_generator.rpn_head.conv": "proposals.convs.0.0",
    "proposal_generator.rpn_head.objectness_logits": "proposals.objectness",
    "proposal_generator.rpn_head.anchor_deltas": "proposals.codes",
    "roi_heads.box_predictor.cls_score": "box_head.logits",
    "roi_heads.box_predictor.bbox_pred": "box_head.codes",
    "roi_heads.mask_head.deconv": "mask_head.enlarge",
    "roi_heads.mask_head.predictor": "mask_head.predictor",
}
_ROWS = {  # layers that are counted from 1
    "roi_heads.box_head.conv": "box_head.convs.{}.0",
    "roi_heads.box_head.fc": "box_head.layers.{}",
    "roi_heads.mask_head.mask_fcn": "mask_head.convs.{}.0",
}


def translate(state: Mapping[str, Tensor], words: str = "A Mask R-CNN of Detectron2") -> Translation:
    """The Mask R-CNN of a state dict in this layout, at any depth, channel and class count.

    Args:
        state: every entry is translated.
        words: what the checkpoint holds, for messages.

    Raises:
        KirieError: when an entry is unknown, missing or no tensor, or the anchors are not of one size per map.
    """
    anchors = {name: tensor for name, tensor in state.items() if name.startswith(_ANCHORS)}
    shared = translated({n: t for n, t in state.items() if n not in anchors}, head, words)
    classes, assumed = known_classes(axis(state, "roi_heads.mask_head.predictor.weight", 0), {"COCO": COCO})
    sizes = _anchors(anchors)
    if not sizes:
        assumed["anchor_sizes"] = "the configurations', (32, 64, 128, 256, 512); where yours are others, set them"
        assumed["anchor_ratios"] = "likewise, (0.5, 1.0, 2.0)"
    return Translation(
        architecture="mask_rcnn",
        in_channels=shared.in_channels,
        classes=classes,
        arguments=shared.arguments | heads(state) | sizes | {"flavour": "detectron2"},
        state=shared.state,
        dropped=shared.dropped | dict.fromkeys(anchors, "made anew from their sizes and ratios"),
        inputs=InputFacts(short_side=800, long_side=1333),
        assumed=assumed | shared.assumed,
    )


def head(name: str) -> str | None:
    """Kirie's name for a tensor of the heads for proposals, boxes and masks, None when they have no such."""
    place, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    if place in _PLACES:
        return f"{_PLACES[place]}.{leaf}"
    match = re.fullmatch(r"(.+?)(\d+)", place)
    if match is None or match[1] not in _ROWS or match[2].startswith("0"):
        return None
    return f"{_ROWS[match[1]].format(int(match[2]) - 1)}.{leaf}"


def heads(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the heads, by the names and shapes of their tensors."""
    convs, layers, mask_convs = (count(state, f"{row}{{}}.weight", first=1) for row in _ROWS)
    return {
        "box_convs": convs,
        "box_layers": layers,
        "box_width": axis(state, "roi_heads.box_predictor.cls_score.weight", 1, axes=2) if layers else 1024,
        "mask_convs": mask_convs,
        "mask_width": axis(state, "roi_heads.mask_head.predictor.weight", 1),
    }


def _anchors(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes per map and ratios of anchors (A, 4) per map; {} where there are none."""
    sizes, ratios = [], set()
    for index in range(len(cells)):
        found = cells.get(f"{_ANCHORS}{index}")
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != 4 or not len(found):
            raise KirieError(f"The anchors {_ANCHORS}{index} are missing or no rows of 4 numbers.")
        sides = (found[:, 2:] - found[:, :2]).double()
        size = sides.prod(1).sqrt()
        if not bool((sides > 0).all()) or float(size.max() - size.min()) > 1e-3 * float(size.max()):
            raise KirieError("Its anchors are of several sizes per map; kirie's Mask R-CNN has one size per map.")
        sizes.append(round(float(size[0]), 3))
        ratios.add(tuple(round(float(ratio), 4) for ratio in sides[:, 1] / sides[:, 0]))
    if len(ratios) > 1:
        raise KirieError("Its anchors have other ratios on other maps; kirie's Mask R-CNN has the same on all.")
    return {"anchor_sizes": tuple(sizes), "anchor_ratios": ratios.pop()} if sizes else {}
