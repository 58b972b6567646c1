"""Changes to a network of timm that make it the variant of a public release; its tensors stay the same."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

Place = tuple[int, int]


def cut(body: Any) -> None:
    """Leaves out the rows of blocks that come after the last feature map of an EfficientNet or MobileNet.

    From other networks timm leaves them out itself.
    """
    last = body.feature_info.module_name(len(body.feature_info.channels()) - 1)
    match = re.fullmatch(r"blocks\.(\d+)", last)
    if _is_mobile(body) and (match or last == "bn1"):
        body.blocks = body.blocks[: int(match[1]) + 1 if match else 0]


def dilate_first(body: nn.Module) -> None:
    """Gives all spatial convolutions of a stage the stage's highest rate."""
    for stage in body.modules():
        # A stage is a row of blocks; a row of stages is not one.
        if not isinstance(stage, nn.Sequential) or any(isinstance(m, nn.Sequential) for m in stage.children()):
            continue
        spatial = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
        rate = max((m.dilation[0] for m in spatial), default=1)
        for convolution in spatial:
            if convolution.stride == (1, 1) and convolution.dilation[0] < rate:
                convolution.dilation = (rate, rate)
                high, wide = convolution.kernel_size
                convolution.padding = (rate * (high - 1) // 2, rate * (wide - 1) // 2)


def stride_first(body: nn.Module) -> bool:
    """Moves the stride of bottlenecks into their first convolution; whether there were any."""
    found = False
    for block in body.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and first.kernel_size == (1, 1):
            found = True
            if second.stride == (2, 2):
                first.stride, second.stride = (2, 2), (1, 1)
    return found


def leak(body: nn.Module, slope: float) -> bool:
    """Gives all leaky ReLUs a slope below 0; whether there were any."""
    leaky = [module for module in body.modules() if isinstance(module, nn.LeakyReLU)]
    for module in leaky:
        module.negative_slope = slope
    return bool(leaky)


def pad_first(body: nn.Module) -> bool:
    """Moves the zeros around a depthwise convolution to before the 1 x 1 convolution that widens its input.

    The stem loses its own. Whether there were any such blocks.
    """
    stem = getattr(body, "conv_stem", None)
    if not isinstance(stem, nn.Conv2d):
        return False
    stem.padding = (0, 0)
    found = False
    for block in body.modules():
        widen, depthwise = getattr(block, "conv_pw", None), getattr(block, "conv_dw", None)
        if isinstance(widen, nn.Conv2d) and isinstance(depthwise, nn.Conv2d) and hasattr(block, "conv_pwl"):
            found = True
            widen.padding, depthwise.padding = depthwise.padding, (0, 0)
    return found


def first_blocks(body: Any) -> list[Place]:
    """Where each feature map of an EfficientNet or MobileNet comes from if it is to be its stage's first block.

    Returns:
        (row of blocks, block in it) per feature map, finest first; (-1, 0) is the stem, and the last feature map stays
        the network's own last. Empty where the network is of another kind.
    """
    names = [body.feature_info.module_name(i) for i in range(len(body.feature_info.channels()))]
    rows = [-1 if name == "bn1" else int(match[1]) if (match := re.fullmatch(r"blocks\.(\d+)", name)) else -2
            for name in names]  # fmt: skip
    if -2 in rows or not _is_mobile(body):
        return []
    begins = [(-1, 0) if row == -1 else (before + 1, 0) for before, row in zip([-1, *rows], rows, strict=False)]
    return [*begins[:-1], (rows[-1], len(body.blocks[rows[-1]]) - 1)]


def place_name(place: Place) -> str:
    """What the module at a place is called in the network."""
    row, block = place
    return "bn1" if row == -1 else f"blocks.{row}.{block}"


def _is_mobile(body: Any) -> bool:
    """Whether it is timm's EfficientNet or MobileNet cut into stages: a stem and rows of blocks."""
    return hasattr(body, "conv_stem") and isinstance(getattr(body, "blocks", None), nn.Sequential)


def maps_at(body: Any, places: list[Place], x: Tensor) -> list[Tensor]:
    """The maps (B, C_i, h_i, w_i) after the blocks at `places`, for normalised images (B, C, H, W)."""
    x = body.bn1(body.conv_stem(x))
    x = body.act1(x) if hasattr(body, "act1") else x
    found = [x] if (-1, 0) in places else []
    for row, blocks in enumerate(body.blocks):
        for index, block in enumerate(blocks):
            if len(found) < len(places):
                x = block(x)
                found += [x] if (row, index) in places else []
    return found
