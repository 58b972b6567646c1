"""Checkpoints of VainF/DeepLabV3Plus-Pytorch: DeepLabV3 and DeepLabV3+ on ResNets and MobileNetV2 (code: MIT).

Written from the tensor names of the releases, which lie under `model_state`: `backbone.` (torchvision's ResNet, or a
MobileNetV2 cut into `low_level_features` and `high_level_features` with its blocks counted through), and a head that is
`classifier.classifier` alone (DeepLabV3) or `classifier.project`, `.aspp` and `.classifier` (DeepLabV3+). Convolutions
that were made separable have `body.0` (by channel) and `body.1` (across). The weights have no statement of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from kirie.class_lists import CITYSCAPES, VOC
from kirie.errors import KirieError
from kirie.weights.structure import aspp, axis, block_place, count, known_classes, resnet
from kirie.weights.translation import Translation

_PLUS, _PLAIN = "classifier.project.0.weight", "classifier.classifier.0.convs.0.0.weight"
_RESNET, _MOBILENET = "backbone.conv1.weight", "backbone.low_level_features.0.0.weight"
_ROWS = (1, 2, 3, 4, 3, 3, 1)  # timm's, of MobileNetV2's 17 blocks


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has this layout's names."""
    return (_PLUS in state and "classifier.aspp.convs.0.0.weight" in state) or _PLAIN in state


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The DeepLabV3 or DeepLabV3+ of a state dict in this layout, at any depth, channel and class count.

    Raises:
        KirieError: when the backbone is none of those that were released, or an entry is unknown or no tensor.
    """
    plus = _PLUS in state
    head = "classifier.aspp" if plus else "classifier.classifier.0"
    last = "classifier.classifier.3" if plus else "classifier.classifier.4"
    encoder, body, stem = _backbone(state)
    branches = count(state, f"{head}.convs.{{}}.1.weight")  # the norm of each, or the pooling's convolution
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        rest = rest.replace(".body.", ".") if part == "classifier" else rest
        new = body(rest) if part == "backbone" else _head(rest, plus, branches) if part == "classifier" else None
        if new is None or not isinstance(tensor, Tensor) or new in renamed:
            raise KirieError(f"A checkpoint in the layout of VainF/DeepLabV3Plus-Pytorch has no entry {name!r:.120}.")
        renamed[new] = tensor
    lists = {"Pascal VOC": VOC, "Cityscapes": CITYSCAPES}
    classes, assumed = known_classes(axis(state, f"{last}.weight", 0), lists)
    own = {"low_width": axis(state, _PLUS, 0)} if plus else {"auxiliary": False}
    return Translation(
        architecture="deeplabv3plus" if plus else "deeplabv3",
        in_channels=axis(state, stem, 1),
        classes=classes,
        arguments={
            **encoder,
            "output_stride": 16,
            "rates": None,
            "width": axis(state, f"{head}.convs.0.0.weight", 0),
            "separable": f"{head}.convs.1.0.body.0.weight" in state,
            "dropout": 0.1,
            **own,
        },
        state=renamed,
        assumed=assumed
        | {
            "output_stride": "16 with rates 6, 12 and 18, as in all releases; the tensors cannot tell. A network that "
            "was trained with --output_stride 8 has 8 with rates 12, 24 and 36."
        },
    )


def _head(name: str, plus: bool, branches: int) -> str | None:
    """Kirie's name of an entry within `classifier.`."""
    part, _, rest = name.partition(".")
    if plus and part == "project":
        return f"low.{rest}"
    layer, _, leaf = rest.partition(".")
    inner = rest if plus and part == "aspp" else leaf if not plus and part == "classifier" and layer == "0" else None
    if inner is not None:
        new = aspp(inner, branches)
        return None if new is None else f"aspp.{new}"
    places = {"0": "0.0", "1": "0.1", "3": "1"} if plus else {"1": "0.0", "2": "0.1", "4": "1"}
    return f"head.{places[layer]}.{leaf}" if part == "classifier" and layer in places else None


def _backbone(state: Mapping[str, object]) -> tuple[dict[str, Any], Callable[[str], str | None], str]:
    """The arguments of the encoder, how names within `backbone.` translate, and the name of the first convolution."""
    if _RESNET in state and "backbone.layer4.0.conv1.weight" in state:
        arguments = {"encoder": resnet(state, "backbone.layer{}"), "encoder_options": None}
        return arguments, lambda name: f"encoder.body.{name}", _RESNET
    if _MOBILENET in state:
        return {"encoder": "mobilenetv2_100", "encoder_options": {"pad_first": True}}, _mobilenet, _MOBILENET
    raise KirieError(
        "The backbone is neither a ResNet nor a MobileNetV2, as those of the releases are; its HRNet and Xception are "
        "not read."
    )


def _mobilenet(name: str) -> str | None:
    """Kirie's name of an entry of the MobileNetV2, within `backbone.`."""
    if match := re.fullmatch(r"low_level_features\.0\.(0|1)\.(\w+)", name):
        return f"encoder.body.{('conv_stem', 'bn1')[int(match[1])]}.{match[2]}"
    match = re.fullmatch(r"(?:low|high)_level_features\.(\d+)\.conv\.(\d(?:\.[01])?)\.(\w+)", name)
    if match is None or match[1] == "0":
        return None
    index = int(match[1]) - 1
    first = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}  # the first block does not widen its input
    others = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
    own = (first if index == 0 else others).get(match[2])
    return None if own is None else f"encoder.body.{block_place(index, _ROWS)}.{own}.{match[3]}"
