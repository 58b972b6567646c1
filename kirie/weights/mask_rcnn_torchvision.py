"""Mask R-CNNs of torchvision.models.detection: `maskrcnn_resnet50_fpn` and its second version (code: BSD-3-Clause).

Written from the tensor names of the releases: `backbone.body` (a ResNet), `backbone.fpn`, `rpn.head`,
`roi_heads.box_head`, `box_predictor`, `mask_head` and `mask_predictor`. The second version has batch norm in pyramid
and heads, and convolutions in the box head. Files of torchvision before 0.13, as that of the first release, name
convolutions without norm otherwise (`inner_blocks.0.weight`, `rpn.head.conv.weight`, `mask_fcn1.weight`).

Torchvision's background is class 0, kirie's classes have none: its row of the classifier comes last, and those of boxes
and masks, which have no effect, are left out. COCO's 91 outputs stand for the numbers of its categories, ten of which
are none: these have no boxes and masks here and are never answered, but they still count in the softmax, so that the
80 classes keep their scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kirie.class_lists import COCO
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.contract import InputFacts
from kirie.weights.structure import axis, count, resnet
from kirie.weights.translation import Translation

_STEM, _LOGITS = "backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"
_OLD = (  # names of convolutions without norm before torchvision 0.13, and after
    (r"(backbone\.fpn\.\w+_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
)
_PLACES = (
    (r"backbone\.body\.(.+)", r"encoder.body.\1"),
    (r"backbone\.fpn\.inner_blocks\.(.+)", r"fpn.laterals.\1"),
    (r"backbone\.fpn\.layer_blocks\.(.+)", r"fpn.outputs.\1"),
    (r"rpn\.head\.conv\.(.+)", r"proposals.convs.\1"),
    (r"rpn\.head\.cls_logits\.(.+)", r"proposals.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(.+)", r"proposals.codes.\1"),
    (r"roi_heads\.box_head\.fc6\.(.+)", r"box_head.layers.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(.+)", r"box_head.layers.1.\1"),
    (r"roi_heads\.box_head\.(\d+\.\d\..+)", r"box_head.convs.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(.+)", r"box_head.logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.+)", r"box_head.codes.\1"),
    (r"roi_heads\.mask_head\.(\d+\.\d\..+)", r"mask_head.convs.\1"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(.+)", r"mask_head.enlarge.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(.+)", r"mask_head.predictor.\1"),
)


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict is of a Mask R-CNN of torchvision on a ResNet."""
    return _STEM in state and any(name.startswith("roi_heads.mask_predictor.") for name in state)


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The Mask R-CNN of a state dict in this layout, at any depth, channel and class count.

    Raises:
        KirieError: when an entry is unknown, missing or no tensor.
    """
    given, state = state, {_modern(name): tensor for name, tensor in state.items()}
    if len(state) < len(given):
        raise KirieError("It has the same layer under its names of before torchvision 0.13 and of after.")
    outputs = axis(state, _LOGITS, 0, axes=2)
    if outputs < 2:
        raise KirieError("Its classifier knows the background alone.")
    classes, chosen, assumed = _classes(outputs)
    convs, norm = count(state, "roi_heads.box_head.{}.0.weight"), "backbone.fpn.inner_blocks.0.1.weight" in state
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = _renamed(name, convs, norm)
        if new is None or not isinstance(tensor, Tensor) or new in renamed:
            raise KirieError(f"A Mask R-CNN of torchvision has no entry {name!r:.120}.")
        renamed[new] = _without_background(new, tensor, outputs, chosen)
    frozen = not any(name.startswith("backbone.body.") and name.endswith("num_batches_tracked") for name in state)
    assumed["anchor_sizes"] = "torchvision's, (32, 64, 128, 256, 512); where yours are others, set them"
    assumed["anchor_ratios"] = "likewise, (0.5, 1.0, 2.0)"
    if frozen:
        assumed["encoder_options"] = (
            "batch norm adds 1e-5 to the variance; where you began from torchvision's COCO weights, which "
            "learned with nothing added, set encoder_options to {frozen_norm: true, norm_eps: 0.0}"
        )
    return Translation(
        architecture="mask_rcnn",
        in_channels=axis(state, _STEM, 1),
        classes=classes,
        arguments={
            "encoder": resnet(state, "backbone.body.layer{}"),
            "encoder_options": {"frozen_norm": True} if frozen else None,
            "flavour": "torchvision",
            "spare_logits": outputs - 1 - len(chosen),
            "norm": norm,
            **_heads(state, convs),
        },
        state=renamed,
        inputs=InputFacts(short_side=800, long_side=1333),
        assumed=assumed,
    )


def _modern(name: str) -> str:
    """The name that torchvision has for an entry since version 0.13."""
    for old, new in _OLD:
        if re.fullmatch(old, name):
            return re.sub(old, new, name)
    match = re.fullmatch(r"roi_heads\.mask_head\.mask_fcn([1-9]\d*)\.(weight|bias)", name)
    return name if match is None else f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}"


def _classes(outputs: int) -> tuple[Classes | int, list[int], dict[str, str]]:
    """The classes of so many outputs, the outputs that stand for them, and what is assumed."""
    if outputs == 91:
        words = "the 91 outputs are taken for background and the category numbers of COCO, of which 80 are classes"
        return COCO, list(COCO.ids), {"classes": words}
    return outputs - 1, list(range(1, outputs)), {}


def _renamed(name: str, convs: int, norm: bool) -> str | None:
    """Kirie's name for an entry, None where there is no such; the linear layers of a box head follow `convs` rows.

    Convolutions of the pyramid stand alone where it has no batch norm.
    """
    match = re.fullmatch(r"roi_heads\.box_head\.(\d+)\.(weight|bias)", name)
    if match is not None:  # a flattening layer, then linear ones with ReLU between
        place, odd = divmod(int(match[1]) - convs - 1, 2)
        return None if odd or place < 0 else f"box_head.layers.{place}.{match[2]}"
    for pattern, new_name in _PLACES:
        if re.fullmatch(pattern, name):
            new = re.sub(pattern, new_name, name)
            return new if norm else re.sub(r"^(fpn\.\w+\.\d+)\.0\.", r"\1.", new)
    return None


def _without_background(name: str, tensor: Tensor, outputs: int, chosen: list[int]) -> Tensor:
    """An entry by kirie's name with its rows in kirie's order: the classes, then for logits all others."""
    part = re.fullmatch(r"(box_head\.logits|box_head\.codes|mask_head\.predictor)\.(weight|bias)", name)
    rows = outputs * (4 if name.startswith("box_head.codes.") else 1)
    if part is None or not tensor.ndim or len(tensor) != rows:
        return tensor  # of a wrong length is told when it is compared with the network
    if name.startswith("box_head.codes."):
        return tensor.reshape(outputs, 4, -1)[chosen].reshape(-1, *tensor.shape[1:])
    if name.startswith("box_head.logits."):
        spare = [index for index in range(1, outputs) if index not in set(chosen)]
        return tensor[[*chosen, *spare, 0]]
    return tensor[torch.tensor(chosen)]


def _heads(state: Mapping[str, Tensor], convs: int) -> dict[str, Any]:
    """The arguments of pyramid and heads, by the names and shapes of their tensors."""
    linear = sum(1 for name in state if re.fullmatch(r"roi_heads\.box_head\.(fc\d|\d+)\.weight", name))
    return {
        "channels": axis(state, "backbone.fpn.inner_blocks.0.0.weight", 0),
        "proposal_convs": count(state, "rpn.head.conv.{}.0.weight"),
        "box_convs": convs,
        "box_layers": linear,
        "box_width": axis(state, _LOGITS, 1, axes=2) if linear else 1024,
        "mask_convs": count(state, "roi_heads.mask_head.{}.0.weight"),
        "mask_width": axis(state, "roi_heads.mask_predictor.mask_fcn_logits.weight", 1),
    }
