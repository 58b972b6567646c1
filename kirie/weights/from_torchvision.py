"""Checkpoints of torchvision: DeepLabV3, FCN, LR-ASPP and Mask R-CNN (code: BSD-3-Clause).

Written from the tensor names of the releases in torchvision.models.segmentation: `backbone.` (a ResNet, or the row of a
MobileNetV3's blocks), `classifier.`, and `aux_classifier.` where there is an auxiliary head. Mask R-CNN has a module of
its own. Networks of torchvision for other tasks are recognised too, so that they can be refused with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from kirie.class_lists import VOC
from kirie.errors import KirieError
from kirie.weights import mask_rcnn_torchvision
from kirie.weights.structure import aspp, axis, block_place, count, known_classes, resnet
from kirie.weights.translation import Translation

_DEEPLAB, _FCN, _LRASPP = "classifier.0.convs.0.0.weight", "classifier.0.weight", "classifier.cbr.0.weight"
_STEM = {"resnet": "backbone.conv1.weight", "mobilenet": "backbone.0.0.weight"}
# Blocks between the stem and the end in timm's rows.
_MOBILENETS = {
    16: ("mobilenetv3_large_100", (1, 2, 3, 4, 2, 3, 1)),
    12: ("mobilenetv3_small_100", (1, 2, 3, 2, 3, 1)),
}
# What an inverted residual's convolutions and norms are called, in their order; the first kind does not widen.
_ROLES = {
    2: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    3: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has torchvision's names, of a network for segmentation or for another task."""
    return _segments(state) or _other_task(state) is not None


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The network of a state dict in this layout, at any depth, channel and class count.

    Raises:
        KirieError: when the network is for another task, its backbone is unknown, or an entry is unknown or no tensor.
    """
    if mask_rcnn_torchvision.recognises(state):
        return mask_rcnn_torchvision.translate(state)
    other = _other_task(state)
    if other is not None:
        raise KirieError(other)
    architecture, arguments, head = _head(state)
    encoder, body = _backbone(state)
    auxiliary = any(name.startswith("aux_classifier.") for name in state)
    if architecture != "lraspp":
        arguments["auxiliary"] = auxiliary
    if architecture == "deeplabv3" and "first_blocks" in (encoder["encoder_options"] or {}):
        arguments["auxiliary_stride"] = 8
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        rename = {"backbone": body, "classifier": head, "aux_classifier": _auxiliary}.get(part)
        new = None if rename is None else rename(rest)
        if new is None or not isinstance(tensor, Tensor) or new in renamed:
            raise KirieError(f"A {architecture} of torchvision has no entry {name!r:.120}.")
        renamed[new] = tensor
    last = {"deeplabv3": "classifier.4", "fcn": "classifier.4", "lraspp": "classifier.low_classifier"}[architecture]
    stem = next(name for name in _STEM.values() if name in state)
    classes, assumed = known_classes(axis(state, f"{last}.weight", 0), {"Pascal VOC": VOC})
    return Translation(
        architecture=architecture,
        in_channels=axis(state, stem, 1),
        classes=classes,
        arguments=encoder | arguments,
        state=renamed,
        assumed=assumed,
    )


def _segments(state: Mapping[str, object]) -> bool:
    return any(stem in state for stem in _STEM.values()) and any(n in state for n in (_DEEPLAB, _FCN, _LRASPP))


def _other_task(state: Mapping[str, object]) -> str | None:
    """Why a network of torchvision for another task is refused; None for one for segmentation."""
    if "fc.weight" in state and "layer1.0.conv1.weight" in state:
        return (
            "It is a ResNet that classifies whole pictures (ImageNet) and cannot segment. Give the file as "
            "`encoder_weights` of a model with a resnet encoder and train it."
        )
    if "features.0.0.weight" in state and any(re.fullmatch(r"classifier\.\d+\.weight", name) for name in state):
        return (
            "It is a network of torchvision that classifies whole pictures (ImageNet) and cannot segment. Take one of "
            "torchvision.models.segmentation, or start from timm's weights with `encoder_weights: hub`."
        )
    if any(name.startswith("backbone.body.") for name in state):
        return (
            "It is a network of torchvision that detects objects without masks (Faster R-CNN, RetinaNet, ...), or a "
            "Mask R-CNN on a backbone that is no ResNet, which is not read; take maskrcnn_resnet50_fpn or its second "
            "version, or one of torchvision.models.segmentation."
        )
    return None


def _head(state: Mapping[str, object]) -> tuple[str, dict[str, Any], Callable[[str], str | None]]:
    """The architecture, the arguments of its head, and how names within `classifier.` translate."""
    if _LRASPP in state:
        return "lraspp", {"width": axis(state, _LRASPP, 0)}, _lraspp
    if _DEEPLAB not in state:
        return "fcn", {}, _fcn
    branches = count(state, "classifier.0.convs.{}.0.weight") + 1  # the pooling has no 0
    arguments = {"rates": (12, 24, 36), "width": axis(state, _DEEPLAB, 0)}
    return "deeplabv3", arguments, lambda name: _deeplab(name, branches)


def _deeplab(name: str, branches: int) -> str | None:
    layer, _, rest = name.partition(".")
    if layer == "0":
        inner = aspp(rest, branches)
        return None if inner is None else f"aspp.{inner}"
    place = {"1": "0.0", "2": "0.1", "4": "1"}.get(layer)
    return None if place is None else f"head.{place}.{rest}"


def _fcn(name: str) -> str | None:
    layer, _, rest = name.partition(".")
    place = {"0": "0.0", "1": "0.1", "4": "2"}.get(layer)
    return None if place is None else f"head.{place}.{rest}"


def _auxiliary(name: str) -> str | None:
    new = _fcn(name)
    return None if new is None else f"auxiliary.{new.removeprefix('head.')}"


def _lraspp(name: str) -> str | None:
    part, _, rest = name.partition(".")
    place = {"cbr": "project", "scale": "scale", "low_classifier": "low_head", "high_classifier": "high_head"}.get(part)
    return None if place is None else f"{place}.{rest}"


def _backbone(state: Mapping[str, object]) -> tuple[dict[str, Any], Callable[[str], str | None]]:
    """The arguments of the encoder, and how names within `backbone.` translate."""
    if _STEM["resnet"] in state:
        name = resnet(state, "backbone.layer{}")
        # Torchvision cannot dilate the ResNets of basic blocks.
        stride = 8 if "backbone.layer1.0.conv3.weight" in state else 32
        arguments: dict[str, Any] = {"encoder": name, "encoder_options": None, "output_stride": stride}
        return arguments, lambda rest: f"encoder.body.{rest}"
    blocks = [_convolutions(state, index) for index in range(1, _blocks(state))]
    name, layout = _MOBILENETS.get(len(blocks) + 1, ("", ()))
    if not name:
        raise KirieError(f"The backbone has {len(blocks) + 1} blocks, as no MobileNetV3 of torchvision has.")
    options = {"dilate_first": True, "norm_eps": 0.001, "first_blocks": True}
    arguments = {"encoder": name, "encoder_options": options, "output_stride": 16}

    def renamed(rest: str) -> str | None:
        index, _, inner = rest.partition(".")
        new = _mobilenet(int(index), inner, blocks, layout) if index.isdecimal() else None
        return None if new is None else f"encoder.body.{new}"

    return arguments, renamed


def _blocks(state: Mapping[str, object]) -> int:
    """Index of the convolution at the end of a MobileNetV3's row."""
    index = 1
    while f"backbone.{index}.block.0.0.weight" in state:
        index += 1
    return index


def _convolutions(state: Mapping[str, object], index: int) -> list[int]:
    """Places in an inverted residual that hold a convolution with norm, not squeeze and excitation."""
    return [place for place in range(4) if f"backbone.{index}.block.{place}.0.weight" in state]


def _mobilenet(index: int, inner: str, blocks: list[list[int]], layout: tuple[int, ...]) -> str | None:
    """Timm's name of an entry of the block at `index` of torchvision's row; None where it has none."""
    if index == 0 or index == len(blocks) + 1:
        layer, _, leaf = inner.partition(".")
        names = ("conv_stem", "bn1") if index == 0 else ("conv", "bn1")
        place = "" if index == 0 else f"{block_place(len(blocks), layout)}."
        return f"{place}{names[int(layer)]}.{leaf}" if layer in ("0", "1") else None
    match = re.fullmatch(r"block\.(\d)\.(0|1|fc1|fc2)\.(\w+)", inner)
    if match is None or index > len(blocks):
        return None
    before = block_place(index - 1, layout)
    if match[2] in ("fc1", "fc2"):
        return f"{before}.se.{'conv_reduce' if match[2] == 'fc1' else 'conv_expand'}.{match[3]}"
    own = blocks[index - 1]
    if len(own) not in _ROLES or int(match[1]) not in own:
        return None
    return f"{before}.{_ROLES[len(own)][own.index(int(match[1]))][int(match[2])]}.{match[3]}"
