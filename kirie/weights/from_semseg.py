"""PSPNet checkpoints of hszhao/semseg (code: MIT; the weights have no statement of their own).

Written from the tensor names of the releases: `layer0` is the stem (convolutions 0, 3, 6, norms 1, 4, 7), `layer1` to
`layer4` are the stages of a ResNet, `ppm.features.i` the branches of the pyramid (convolution 1, norm 2), `cls` and
`aux` the heads (convolution 0, norm 1, classifier 4). ResNet-50, 101 and 152 are told apart by their blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from kirie.class_lists import ADE20K, CITYSCAPES, VOC
from kirie.errors import KirieError
from kirie.models.pspnet import BINS
from kirie.weights.structure import axis, count, known_classes, resnet
from kirie.weights.translation import Translation

_LAYOUT = "hszhao/semseg"
_ENCODERS = ("resnet50", "resnet101", "resnet152")
_CLASSES = {"ADE20K": ADE20K, "Pascal VOC": VOC, "Cityscapes": CITYSCAPES}
_STEM = {"0": "conv1.0", "1": "conv1.1", "3": "conv1.3", "4": "conv1.4", "6": "conv1.6", "7": "bn1"}
_LAYERS = {
    "cls": {"0": "head.mix", "1": "head.norm", "4": "head.classifier"},
    "aux": {"0": "auxiliary.0.0", "1": "auxiliary.0.1", "4": "auxiliary.2"},
}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has this layout's names; so has PSANet, which `translate` refuses."""
    return "layer0.0.weight" in state and "layer1.0.conv1.weight" in state


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The PSPNet of a state dict in this layout, on ResNet-50, 101 or 152, of any width, channel and class count.

    Raises:
        KirieError: when it is a PSANet, on another encoder or without a pyramid of four branches, or an entry is
            unknown, missing or no tensor.
    """
    if any(name.startswith("psa.") for name in state):
        raise KirieError(
            "This is a PSANet, the project's other architecture, which kirie does not have; its PSPNet of the same "
            "depth and data set scores within 0.5 points of mIoU."
        )
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = _renamed(name)
        if new is None or not isinstance(tensor, Tensor):
            raise KirieError(f"A PSPNet checkpoint in the layout of {_LAYOUT} has no entry {name!r:.120}.")
        renamed[new] = tensor
    encoder = resnet(state, "layer{}")
    if encoder not in _ENCODERS:
        raise KirieError(f"Its encoder has the blocks of {encoder}; the project has {', '.join(_ENCODERS)}.")
    branches = count(state, "ppm.features.{}.1.weight")
    if branches != len(BINS):
        raise KirieError(f"Its pyramid has {branches} branches; the releases have {len(BINS)}, with the bins {BINS}.")
    classes, assumed = known_classes(axis(state, "cls.4.weight", 0), _CLASSES)
    return Translation(
        architecture="pspnet",
        in_channels=axis(state, "layer0.0.weight", 1),
        classes=classes,
        arguments={
            "encoder": f"{encoder}s",  # with the stem of three convolutions
            "encoder_options": {"dilate_first": True},
            "output_stride": 8,
            "width": axis(state, "cls.0.weight", 0),
            "auxiliary": "aux.4.weight" in state,
            "align_corners": True,
        },
        state=renamed,
        assumed=assumed,
    )


def _renamed(name: str) -> str | None:
    """Kirie's name for a tensor, None when the layout has no such name."""
    if match := re.fullmatch(r"layer0\.([013467])\.(\w+)", name):
        return f"encoder.body.{_STEM[match[1]]}.{match[2]}"
    if re.fullmatch(r"layer[1-4]\.\d+\.[\w.]+", name):
        return f"encoder.body.{name}"
    if match := re.fullmatch(r"ppm\.features\.(\d+)\.([12])\.(\w+)", name):
        return f"head.branches.{match[1]}.{int(match[2]) - 1}.{match[3]}"
    if match := re.fullmatch(r"(cls|aux)\.([014])\.(\w+)", name):
        return f"{_LAYERS[match[1]][match[2]]}.{match[3]}"
    return None
