"""What checkpoints of Detectron2's architectures share: the ResNet, the feature pyramid, and how pictures come in.

`backbone.bottom_up` is a ResNet or ResNeXt (`stem`, `res2` to `res5`), `backbone.fpn_lateralN` and `fpn_outputN` are
the pyramid. The networks take pictures in the order blue, green, red and in 0..255: the first convolution is turned
round here, mean and deviation are divided by 255. Projects built on Detectron2 have the same names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from kirie.errors import KirieError
from kirie.weights.structure import axis, resnet

BODY = "backbone.bottom_up."
PIXELS = ("pixel_mean", "pixel_std")
# The configurations' numbers, blue, green, red. ResNets begin from MSRA's weights, ResNeXts from FAIR's.
_MEAN = (103.53, 116.28, 123.675)
_STD = {"resnet": (1.0, 1.0, 1.0), "resnext": (57.375, 57.12, 58.395)}


class Shared(NamedTuple):
    """The parts of a `Translation` that follow from backbone, pyramid and pixels.

    Attributes:
        in_channels: C of the images.
        arguments: encoder, encoder_options, channels, mean and std.
        state: all tensors under kirie's names, those of the heads too.
        dropped: entries that were left out, each with the reason.
        assumed: arguments that the checkpoint cannot tell.
    """

    in_channels: int
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    dropped: dict[str, str]
    assumed: dict[str, str]


def translated(state: Mapping[str, Tensor], head: Callable[[str], str | None], words: str) -> Shared:
    """Backbone, pyramid and pixels of a state dict, and its heads by their own names.

    Args:
        state: every entry is translated.
        head: kirie's name of an entry that is of none of the above, or None where there is no such entry.
        words: what the checkpoint holds, for messages.

    Raises:
        KirieError: when an entry is unknown or no tensor, or the encoder or the pixels' numbers are none that fit.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = _backbone(name) or _pyramid(name) or head(name)
        if not isinstance(tensor, Tensor) or (new is None and name not in PIXELS) or new in renamed:
            raise KirieError(f"{words} has no entry {name!r:.120}.")
        if new is not None:
            renamed[new] = tensor
    encoder = resnet(state, f"{BODY}res{{}}", first=2)
    learned = any(name.startswith(BODY) and name.endswith(".num_batches_tracked") for name in state)
    pixels = _pixels(state, encoder)
    if pixels.reversed:
        renamed["encoder.body.conv1.weight"] = renamed["encoder.body.conv1.weight"].flip(1)
    options = {"frozen_norm": not learned, "stride_first": pixels.stride_first}
    told = (
        f"stride_first is {str(pixels.stride_first).lower()} (STRIDE_IN_1X1), as in the configurations for pictures "
        f"{'divided by their deviation' if not pixels.stride_first else 'that are not divided by their deviation'}; "
        "where yours says otherwise, set encoder_options to "
        f"{{stride_first: {str(not pixels.stride_first).lower()}, frozen_norm: {str(options['frozen_norm']).lower()}}}"
    )
    return Shared(
        in_channels=axis(state, f"{BODY}stem.conv1.weight", 1),
        arguments={
            "encoder": encoder,
            "encoder_options": options,
            "channels": axis(state, "backbone.fpn_output2.weight", 0),
            "mean": pixels.mean,
            "std": pixels.std,
        },
        state=renamed,
        dropped={name: "kept as the model's own `mean` and `std`" for name in PIXELS if name in state},
        assumed={"encoder_options": told} | pixels.assumed,
    )


class _Pixels(NamedTuple):
    """How pictures come in: numbers for red, green, blue in [0, 1], and what they tell about the encoder."""

    reversed: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stride_first: bool
    assumed: dict[str, str]


def _backbone(name: str) -> str | None:
    """Kirie's name for a tensor of the ResNet, None when it has no such."""
    if name == f"{BODY}stem.conv1.weight":
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


def _pixels(state: Mapping[str, Tensor], encoder: str) -> _Pixels:
    """Mean, deviation and order of the colours: as the file has them, otherwise as the configurations do."""
    channels = axis(state, f"{BODY}stem.conv1.weight", 1)
    assumed = {}
    if all(name in state for name in PIXELS):
        # Rounded to what float32 holds of numbers around 100, so that 103.53 is 103.53 again.
        mean, std = (tuple(round(v, 5) for v in state[name].flatten()[: channels + 1].tolist()) for name in PIXELS)
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
        stride_first=all(value == 1 for value in std) and f"{BODY}res2.0.conv3.weight" in state,  # of bottlenecks
        assumed=assumed,
    )
