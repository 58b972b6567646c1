"""Layouts that several publishers share: ResNets as torchvision names them, rows of MobileNet blocks, ASPP."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from kirie.errors import KirieError

# Blocks per stage, (out, in) channels of the first block's last 3 x 3 convolution -> timm's name.
_Shape = tuple[tuple[int, ...], tuple[int, int]]
_BOTTLENECK: dict[_Shape, str] = {
    ((3, 4, 6, 3), (64, 64)): "resnet50",
    ((3, 4, 23, 3), (64, 64)): "resnet101",
    ((3, 8, 36, 3), (64, 64)): "resnet152",
    ((3, 4, 6, 3), (128, 128)): "wide_resnet50_2",
    ((3, 4, 23, 3), (128, 128)): "wide_resnet101_2",
    ((3, 4, 6, 3), (128, 4)): "resnext50_32x4d",
    ((3, 4, 23, 3), (256, 8)): "resnext101_32x8d",
    ((3, 4, 23, 3), (256, 4)): "resnext101_64x4d",
}
_BASIC: dict[_Shape, str] = {
    ((2, 2, 2, 2), (64, 64)): "resnet18",
    ((3, 4, 6, 3), (64, 64)): "resnet34",
}


def axis(state: Mapping[str, object], name: str, index: int) -> int:
    """The length of an axis of a convolution's weight.

    Raises:
        KirieError: when there is no such tensor or it has not 4 axes.
    """
    tensor = state.get(name)
    if not isinstance(tensor, Tensor) or tensor.ndim != 4:
        raise KirieError(f"The checkpoint lacks {name} with 4 axes; it is cut short or of another layout.")
    return int(tensor.shape[index])


def count(state: Mapping[str, object], name: str) -> int:
    """How many entries there are of a name with `{}` for a number, from 0 on without gaps."""
    found = 0
    while name.format(found) in state:
        found += 1
    return found


def resnet(state: Mapping[str, object], prefix: str) -> str:
    """Timm's name of the ResNet whose entries, named as torchvision does, begin with `prefix`.

    Raises:
        KirieError: when no ResNet of timm has its blocks.
    """
    blocks = tuple(count(state, f"{prefix}layer{stage}.{{}}.conv1.weight") for stage in (1, 2, 3, 4))
    spatial = f"{prefix}layer1.0.conv2.weight"
    width = axis(state, spatial, 0), axis(state, spatial, 1)
    kind = _BOTTLENECK if f"{prefix}layer1.0.conv3.weight" in state else _BASIC
    if (blocks, width) not in kind:
        raise KirieError(
            f"The backbone is a ResNet of {blocks} blocks with 3 x 3 convolutions of {width} channels; known are "
            f"{', '.join([*_BOTTLENECK.values(), *_BASIC.values()])}."
        )
    return kind[blocks, width]


def block_place(index: int, layout: Sequence[int]) -> str:
    """Where timm has a block of one long row, counted from 0: `blocks.row.place` for rows of `layout` blocks."""
    for row, blocks in enumerate(layout):
        if index < blocks:
            return f"blocks.{row}.{index}"
        index -= blocks
    raise KirieError(f"The backbone has more blocks than the {sum(layout)} of its kind.")


def aspp(name: str, branches: int) -> str | None:
    """Kirie's name of an entry of torchvision's ASPP, within that module, or None where there is no such entry.

    Args:
        name: such as `convs.0.0.weight` or `project.1.bias`.
        branches: how many it has, the pooling included.
    """
    if name.startswith("project."):
        return f"project.0.{name.removeprefix('project.')}"
    match = re.fullmatch(r"convs\.(\d+)\.(\d)\.(.+)", name)
    if match is None:
        return None
    branch, layer, leaf = int(match[1]), int(match[2]), match[3]
    if branch == branches - 1:  # 0 is the pooling itself
        return f"branches.{branch}.conv.{layer - 1}.{leaf}" if layer else None
    return f"branches.{branch}.{layer}.{leaf}"
