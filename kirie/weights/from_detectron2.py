"""Checkpoints that Detectron2 (code: Apache-2.0) wrote in training: Semantic FPN, of which no weights are public.

Written from the tensor names of its model zoo's Panoptic FPN and of the files that it writes in training:
`backbone.bottom_up` is a ResNet or ResNeXt (`stem`, `res2` to `res5`), `backbone.fpn_lateralN` and `fpn_outputN` are
the pyramid, `sem_seg_head` is the semantic head. Its networks take pictures in the order blue, green, red and in
0..255: the first convolution is turned round here, mean and deviation are divided by 255.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from kirie.class_lists import ADE20K, CITYSCAPES, COCO_STUFF
from kirie.errors import KirieError
from kirie.weights.structure import axis, known_classes, resnet
from kirie.weights.translation import Translation

_BODY = "backbone.bottom_up."
_PIXELS = ("pixel_mean", "pixel_std")
# The configurations' numbers, blue, green, red. ResNets begin from MSRA's weights, ResNeXts from FAIR's.
_MEAN = (103.53, 116.28, 123.675)
_STD = {"resnet": (1.0, 1.0, 1.0), "resnext": (57.375, 57.12, 58.395)}
_CLASSES = {
    "COCO panoptic: all things as one, then the 53 stuff classes": COCO_STUFF,
    "ADE20K": ADE20K,
    "Cityscapes": CITYSCAPES,
}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has the names of Detectron2's backbones, whatever heads are on them."""
    return f"{_BODY}stem.conv1.weight" in state or "backbone.stem.conv1.weight" in state


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
    heads = sorted({name.partition(".")[0] for name in state} - {"backbone", *_PIXELS})
    raise KirieError(f"Its heads are none that kirie knows: {', '.join(heads)[:120] or 'it has none'}.")


def _semantic_fpn(state: Mapping[str, Tensor]) -> Translation:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = _backbone(name) or _pyramid(name) or _semantic_head(name)
        if not isinstance(tensor, Tensor) or (new is None and name not in _PIXELS):
            raise KirieError(f"A Semantic FPN of Detectron2 has no entry {name!r:.120}.")
        if new is not None:
            renamed[new] = tensor
    encoder = resnet(state, f"{_BODY}res{{}}", first=2)
    learned = any(name.startswith(_BODY) and name.endswith(".num_batches_tracked") for name in state)
    pixels = _pixels(state, encoder)
    if pixels.reversed:
        renamed["encoder.body.conv1.weight"] = renamed["encoder.body.conv1.weight"].flip(1)
    options = {"frozen_norm": not learned, "stride_first": pixels.stride_first}
    classes, assumed = known_classes(axis(state, "sem_seg_head.predictor.weight", 0), _CLASSES)
    assumed["encoder_options"] = (
        f"stride_first is {str(pixels.stride_first).lower()} (STRIDE_IN_1X1), as in the configurations for pictures "
        f"{'divided by their deviation' if not pixels.stride_first else 'that are not divided by their deviation'}; "
        "where yours says otherwise, set encoder_options to "
        f"{{stride_first: {str(not pixels.stride_first).lower()}, frozen_norm: {str(options['frozen_norm']).lower()}}}"
    )
    return Translation(
        architecture="semantic_fpn",
        in_channels=axis(state, f"{_BODY}stem.conv1.weight", 1),
        classes=classes,
        arguments={
            "encoder": encoder,
            "encoder_options": options,
            "channels": axis(state, "backbone.fpn_output2.weight", 0),
            "width": axis(state, "sem_seg_head.p2.0.weight", 0),
            "mean": pixels.mean,
            "std": pixels.std,
        },
        state=renamed,
        dropped={name: "kept as the model's own `mean` and `std`" for name in _PIXELS if name in state},
        assumed=assumed | pixels.assumed,
    )


class _Kind(NamedTuple):
    """What a file holds when names begin with each of `parts`, and its translator, if kirie builds it."""

    parts: tuple[str, ...]
    words: str
    translate: Callable[[Mapping[str, Tensor]], Translation] | None = None


_KINDS = (  # the first that fits counts
    _Kind(("proposal_generator.", "roi_heads.", "sem_seg_head."), "a Panoptic FPN"),
    _Kind(("roi_heads.keypoint_head.",), "a Keypoint R-CNN"),
    _Kind(("roi_heads.mask_head.",), "a Mask R-CNN"),
    _Kind(("roi_heads.",), "a Faster R-CNN, which finds boxes without masks"),
    _Kind(("proposal_generator.",), "a region proposal network, which finds boxes without classes"),
    _Kind(("head.cls_subnet.",), "a RetinaNet, which finds boxes without masks"),
    _Kind(("ins_head.", "mask_head."), "a SOLOv2 of AdelaiDet"),
    _Kind(("backbone.stem.", "sem_seg_head."), "a DeepLab of Detectron2's projects"),
    _Kind(("sem_seg_head.p2.", "sem_seg_head.predictor."), "a Semantic FPN", _semantic_fpn),
)


# ---- parts that several architectures share


class _Pixels(NamedTuple):
    """How pictures come in: numbers for red, green, blue in [0, 1], and what they tell about the encoder."""

    reversed: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stride_first: bool
    assumed: dict[str, str]


def _backbone(name: str) -> str | None:
    """Kirie's name for a tensor of the ResNet, None when it has no such."""
    if name == f"{_BODY}stem.conv1.weight":
        return "encoder.body.conv1.weight"
    if match := re.fullmatch(r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", name):
        return f"encoder.body.bn1.{match[1]}"
    match = re.fullmatch(r"backbone\.bottom_up\.res([2-5])\.(\d+)\.(?:conv([123])|shortcut)(\.norm)?\.(\w+)", name)
    if match is None:
        return None
    stage, block, number, norm, leaf = match.groups()
    if number:
        layer = f"bn{number}" if norm else f"conv{number}"
    else:
        layer = "downsample.1" if norm else "downsample.0"
    return f"encoder.body.layer{int(stage) - 1}.{block}.{layer}.{leaf}"


def _pyramid(name: str) -> str | None:
    match = re.fullmatch(r"backbone\.fpn_(lateral|output)([2-5])\.(weight|bias)", name)
    return match and f"fpn.{match[1]}s.{int(match[2]) - 2}.{match[3]}"


def _semantic_head(name: str) -> str | None:
    if match := re.fullmatch(r"sem_seg_head\.predictor\.(weight|bias)", name):
        return f"head.predictor.{match[1]}"
    match = re.fullmatch(r"sem_seg_head\.p([2-5])\.(\d+)(\.norm)?\.(\w+)", name)
    return match and f"head.branches.{int(match[1]) - 2}.{match[2]}.{1 if match[3] else 0}.{match[4]}"


def _pixels(state: Mapping[str, Tensor], encoder: str) -> _Pixels:
    """Mean, deviation and order of the colours: as the file has them, otherwise as the configurations do."""
    channels = axis(state, f"{_BODY}stem.conv1.weight", 1)
    assumed = {}
    if all(name in state for name in _PIXELS):
        # Rounded to what float32 holds of numbers around 100, so that 103.53 is 103.53 again.
        mean, std = (tuple(round(v, 5) for v in state[name].flatten()[: channels + 1].tolist()) for name in _PIXELS)
        if {len(mean), len(std)} != {channels} or not all(-1e6 < m < 1e6 for m in mean) or not all(s > 0 for s in std):
            raise KirieError(f"pixel_mean and pixel_std must be {channels} numbers each, got {mean} and {std}.")
    else:
        mean, std = (0.0,) * channels, (1.0,) * channels
        if channels == 3:
            mean, std = _MEAN, _STD["resnext" if encoder.startswith("resnext") else "resnet"]
        assumed["mean"] = (
            f"PIXEL_MEAN is {list(mean)} for pictures in 0..255, blue, green, red"
            + (", as in the configurations" if channels == 3 else " (no number is usual for other pictures)")
            + "; where yours says otherwise, set mean to it in the order red, green, blue and divided by 255"
        )
        assumed["std"] = f"PIXEL_STD is {list(std)}; where yours says otherwise, set std in the same way"
    # The means of ImageNet and of most photographs rise from blue to red; a file with RGB weights has them falling.
    order = -1 if channels == 3 and mean[0] <= mean[2] else 1
    return _Pixels(
        reversed=order < 0,
        mean=tuple(value / 255 for value in mean[::order]),
        std=tuple(value / 255 for value in std[::order]),
        stride_first=all(value == 1 for value in std),
        assumed=assumed,
    )
