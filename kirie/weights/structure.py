"""What the names and shapes of a checkpoint tell, for all publishers: axes, ResNets, rows of blocks, ASPP, classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from kirie.classes import Classes
from kirie.errors import KirieError

# (Blocks per stage, groups of the 3 x 3 convolutions in the first stage, channels of a group) -> timm's name.
_Shape = tuple[tuple[int, ...], int, int]
_BOTTLENECK: dict[_Shape, str] = {
    ((3, 4, 6, 3), 1, 64): "resnet50",
    ((3, 4, 23, 3), 1, 64): "resnet101",
    ((3, 8, 36, 3), 1, 64): "resnet152",
    ((3, 4, 6, 3), 1, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), 1, 128): "wide_resnet101_2",
    ((3, 4, 6, 3), 32, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), 32, 4): "resnext101_32x4d",
    ((3, 4, 23, 3), 32, 8): "resnext101_32x8d",
    ((3, 4, 23, 3), 64, 4): "resnext101_64x4d",
}
_BASIC: dict[_Shape, str] = {
    ((2, 2, 2, 2), 1, 64): "resnet18",
    ((3, 4, 6, 3), 1, 64): "resnet34",
}


def known_classes(count: int, lists: Mapping[str, Classes]) -> tuple[Classes | int, dict[str, str]]:
    """The classes that a publisher's files with so many outputs have, and the sentence that says so.

    Args:
        count: how many classes the checkpoint tells apart.
        lists: the publisher's data sets, by the words that name them.

    Returns:
        The classes, or their number where no list is as long; what is assumed, for `Translation.assumed`.
    """
    for words, classes in lists.items():
        if len(classes) == count:
            return classes, {"classes": f"the {count} classes are taken for those of {words}, in its order"}
    return count, {}


def axis(state: Mapping[str, object], name: str, index: int, *, axes: int = 4) -> int:
    """The length, 1 or more, of an axis of a weight; those of convolutions have 4 axes.

    Raises:
        KirieError: when there is no such tensor, or it is empty or has not so many axes.
    """
    tensor = state.get(name)
    if not isinstance(tensor, Tensor) or tensor.ndim != axes or 0 in tensor.shape:
        raise KirieError(f"The checkpoint lacks {name} with {axes} axes; it is cut short, empty or of another layout.")
    return int(tensor.shape[index])


def count(state: Mapping[str, object], name: str, *, first: int = 0) -> int:
    """How many entries there are of a name with `{}` for a number, from `first` on without gaps."""
    found = 0
    while name.format(first + found) in state:
        found += 1
    return found


def resnet(state: Mapping[str, object], stage: str, *, first: int = 1) -> str:
    """Timm's name of a ResNet, ResNeXt or wide ResNet whose blocks have `conv1`, `conv2` and mostly `conv3`.

    Args:
        state: its entries and others.
        stage: what the names of a stage begin with, with `{}` for its number, such as `backbone.layer{}`.
        first: the number of the first of the four stages.

    Raises:
        KirieError: when timm's ResNets have other blocks.
    """
    stages = [stage.format(number) for number in range(first, first + 4)]
    blocks = tuple(count(state, f"{name}.{{}}.conv1.weight") for name in stages)
    spatial = f"{stages[0]}.0.conv2.weight"
    width = axis(state, spatial, 1)
    groups = axis(state, spatial, 0) // width
    kind = _BOTTLENECK if f"{stages[0]}.0.conv3.weight" in state else _BASIC
    if (blocks, groups, width) not in kind:
        raise KirieError(
            f"The encoder is a ResNet of {blocks} blocks per stage and {groups} groups of {width} channels; known are "
            f"{', '.join([*_BOTTLENECK.values(), *_BASIC.values()])}."
        )
    return kind[blocks, groups, width]


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
