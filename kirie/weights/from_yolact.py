"""Checkpoints of dbolya/yolact (code: MIT; the weights have no statement of their own).

Written from the tensor names of the releases: `backbone` is a ResNet (`conv1`, `bn1`, `layers.0` to `layers.3`) or
Darknet-53 (`_preconv`, `layers.0` to `layers.4`, each layer a convolution 0 with norm 1), `fpn` the pyramid, whose
`lat_layers` and `pred_layers` begin at the coarsest map, `proto_net` makes the prototypes, `prediction_layers.0` is the
head of all maps, `semantic_seg_conv` learns beside it. The configuration stands in no file, only in its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from kirie.class_lists import COCO
from kirie.errors import KirieError
from kirie.weights.structure import axis, count, known_classes, resnet
from kirie.weights.translation import Translation

_LAYOUT = "dbolya/yolact"
_HEAD = "prediction_layers.0."
_RATIOS = (1.0, 0.5, 2.0)
_INPUT = 550  # pixels a side
_MEAN, _STD = (123.68, 116.78, 103.94), (58.40, 57.12, 57.38)  # red, green, blue; Darknet's pictures are in [0, 1]
_DARKNET = (1, 2, 8, 8, 4)  # blocks of its stages
_LEVELS = 3  # of the backbone that the pyramid takes
_PROTONET = {"0": "0.0", "2": "1.0", "4": "2.0", "8": "4.0", "10": "5"}
_PARTS = {"upfeature.0": "shared.0", "bbox_layer": "codes.0", "conf_layer": "logits.0", "mask_layer": "coefficients.0"}


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has this layout's names; so has YOLACT++, which `translate` refuses."""
    return f"{_HEAD}mask_layer.weight" in state and any(name.startswith("proto_net.") for name in state)


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The YOLACT of a state dict in this layout, on a ResNet or Darknet-53, of any width, channel and class count.

    Raises:
        KirieError: when it is a YOLACT++, on another encoder or of another arrangement, or an entry is unknown,
            missing or no tensor.
    """
    if any("conv_offset_mask" in name or name.startswith("maskiou_net.") for name in state):
        raise KirieError(
            "It is a YOLACT++, with deformable convolutions or a head that rates masks, which kirie does not build; "
            "take one of the project's YOLACT."
        )
    backbone = _backbone(state)
    renamed: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for name, tensor in state.items():
        if re.match(r"backbone\.layer\d", name) or re.match(r"fpn\.downsample_layers\.([2-9]|\d\d)", name):
            dropped[name] = "an old duplicate or a map that is not used, which the project leaves out too"
            continue
        new = backbone.renamed(name) or _renamed(name)
        if new is None or not isinstance(tensor, Tensor):
            raise KirieError(f"A YOLACT in the layout of {_LAYOUT} has no entry {name!r:.120}.")
        renamed[new] = tensor
    places = axis(state, f"{_HEAD}bbox_layer.weight", 0) // 4
    levels = count(state, "fpn.lat_layers.{}.weight")
    if (places, levels) != (len(_RATIOS), _LEVELS):
        raise KirieError(
            f"It has {places} priors at each place and a pyramid over {levels} maps; the project's YOLACTs have "
            f"{len(_RATIOS)} and {_LEVELS}."
        )
    classes, assumed = known_classes(axis(state, f"{_HEAD}conf_layer.weight", 0) // places - 1, {"COCO": COCO})
    assumed["input_size"] = (
        f"{_INPUT}, as in most configurations of the project; yolact_im700 has 700, yolact_im400 400"
    )
    assumed["scales"] = (
        "24 to 384 pixels for an input size of 550 and otherwise in proportion, as in all configurations but "
        "yolact_resnet50_pascal, for which set scales=[32,64,128,256,512] and square=false"
    )
    channels = axis(state, backbone.first, 1)
    if channels != 3:
        assumed["mean"] = "0.5 in [0, 1] with a deviation of 0.25, since no number is usual for other pictures than RGB"
    return Translation(
        architecture="yolact",
        in_channels=channels,
        classes=classes,
        arguments={
            "encoder": backbone.encoder,
            "encoder_options": backbone.options,
            "input_size": _INPUT,
            "scales": None,
            "ratios": _RATIOS,
            "square": True,
            "channels": axis(state, "fpn.lat_layers.0.weight", 0),
            "prototypes": axis(state, "proto_net.10.weight", 0),
            "mean": backbone.mean if channels == 3 else None,
            "std": backbone.std if channels == 3 else None,
        },
        state=renamed,
        dropped=dropped,
        assumed=assumed,
    )


class _Backbone(NamedTuple):
    """The encoder, its first convolution as the file names it, how pictures come in, and kirie's names within it."""

    encoder: str
    options: dict[str, Any] | None
    first: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    renamed: Callable[[str], str | None]


def _backbone(state: Mapping[str, object]) -> _Backbone:
    if "backbone._preconv.0.weight" in state:
        blocks = tuple(count(state, f"backbone.layers.{stage}.{{}}.conv1.0.weight", first=1) for stage in range(5))
        if blocks != _DARKNET:
            raise KirieError(f"Its backbone is a Darknet of {blocks} blocks per stage; Darknet-53 has {_DARKNET}.")
        first, options = "backbone._preconv.0.weight", {"leak": 0.1}
        return _Backbone("darknet53", options, first, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), _darknet)
    if "backbone.conv1.weight" not in state:
        raise KirieError("Its backbone is neither a ResNet nor Darknet-53; the releases have no other.")
    mean, std = (tuple(value / 255 for value in row) for row in (_MEAN, _STD))
    return _Backbone(resnet(state, "backbone.layers.{}", first=0), None, "backbone.conv1.weight", mean, std, _resnet)


def _resnet(name: str) -> str | None:
    if match := re.fullmatch(r"backbone\.((?:conv|bn)1\.\w+)", name):
        return f"encoder.body.{match[1]}"
    match = re.fullmatch(r"backbone\.layers\.([0-3])\.(\d+\.[\w.]+)", name)
    return match and f"encoder.body.layer{int(match[1]) + 1}.{match[2]}"


def _darknet(name: str) -> str | None:
    match = re.fullmatch(r"backbone\.(?:_preconv|layers\.([0-4])\.(\d+)(?:\.(conv[12]))?)\.([01])\.(\w+)", name)
    if match is None:
        return None
    stage, block, layer, kind, leaf = match.groups()
    if stage is None:
        place = "stem_conv1"
    elif layer is None:
        place = f"stages_{stage}.conv_down" if block == "0" else ""
    else:
        place = f"stages_{stage}.blocks.{int(block) - 1}.{layer}"
    return place and f"encoder.body.{place}.{'conv' if kind == '0' else 'bn'}.{leaf}"


def _renamed(name: str) -> str | None:
    """Kirie's name for a tensor outside of the backbone, None when the layout has no such name."""
    leaf = name.rpartition(".")[2]
    if match := re.fullmatch(r"fpn\.(\w+_layers)\.([0-2])\.\w+", name):
        part, number = match[1], int(match[2])
        place = {"lat_layers": "laterals.{}", "pred_layers": "outputs.{}.0"}.get(part)  # coarsest first
        return f"pyramid.{place.format(_LEVELS - 1 - number)}.{leaf}" if place else f"pyramid.extra.{number}.{leaf}"
    if match := re.fullmatch(r"proto_net\.(\d+)\.\w+", name):
        return f"protonet.{_PROTONET[match[1]]}.{leaf}" if match[1] in _PROTONET else None
    if name.startswith(_HEAD):
        part = name.removeprefix(_HEAD).removesuffix(f".{leaf}")
        return f"head.{_PARTS[part]}.{leaf}" if part in _PARTS else None
    return f"semantic.{leaf}" if name in ("semantic_seg_conv.weight", "semantic_seg_conv.bias") else None
