"""U-Net checkpoints in the layout of milesial/Pytorch-UNet, which the textbook's listing shares but for its head.

Written from the tensor names of the releases: `inc`, `down1`..., `up1`..., `outc`, each double convolution numbered 0
(convolution), 1 (norm), 3, 4. Early releases (v1.0, and the textbook) have biases in the double convolutions, later
ones do not; v2.0 up-samples bilinearly and has no `up` weights. The weights are published with a GPL-3.0 repository and
no statement of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from kirie.errors import KirieError
from kirie.weights.translation import Translation

_DOUBLE = r"(?:\w+\.)*double_conv\.(?P<layer>\d+)\.(?P<leaf>\w+)"


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has this layout's names."""
    return "inc.double_conv.0.weight" in state and any(name in state for name in ("outc.weight", "outc.conv.weight"))


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The U-Net of a state dict in this layout, at any width, depth, channel and class count.

    Raises:
        KirieError: when an entry is unknown, repeated or no tensor, or the first or last convolution is missing.
    """
    head = "outc.conv" if "outc.conv.weight" in state else "outc"
    for name, axes in (("inc.double_conv.0.weight", 4), (f"{head}.weight", 4), (f"{head}.bias", 1)):
        if not isinstance(state.get(name), Tensor) or state[name].ndim != axes:
            raise KirieError(f"The checkpoint lacks {name} with {axes} axes; it is cut short or of another layout.")
    depth = sum(1 for name in state if re.fullmatch(r"down\d+\.\w+\.1\.double_conv\.0\.weight", name))
    transposed = "up1.up.weight" in state
    renamed: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for name, tensor in state.items():
        new = _renamed(name, depth, head)
        if new is not None and isinstance(tensor, Tensor) and new not in renamed:
            renamed[new] = tensor
        elif name == "mask_values":
            dropped[name] = "the grey values of the training masks, not part of the network"
        else:
            raise KirieError(f"A checkpoint in the layout of milesial/Pytorch-UNet has no entry {name!r:.120}.")
    arguments = {
        "width": int(state["inc.double_conv.0.weight"].shape[0]),
        "depth": depth,
        "up": "transposed" if transposed else "bilinear",
        "bias": "inc.double_conv.0.bias" in state,
    }
    return Translation(
        architecture="unet",
        in_channels=int(state["inc.double_conv.0.weight"].shape[1]),
        classes=int(state[f"{head}.weight"].shape[0]),
        arguments=arguments,
        state=renamed,
        dropped=dropped,
    )


def _renamed(name: str, depth: int, head: str) -> str | None:
    if name.startswith(f"{head}."):
        return "head." + name.removeprefix(f"{head}.")
    if match := re.fullmatch(r"up(?P<step>\d+)\.up\.(?P<leaf>weight|bias)", name):
        return f"up.{int(match['step']) - 1}.up.{match['leaf']}"
    match = re.fullmatch(rf"(?P<part>inc|down|up)(?P<step>\d*)\.{_DOUBLE}", name)
    if match is None:
        return None
    # 0 1 (2) 3 4 (5): convolution, norm, ReLU, twice; ours counts the same.
    inner = f"{match['layer']}.{match['leaf']}"
    if match["part"] == "inc":
        return f"down.0.{inner}"
    step = int(match["step"])
    if match["part"] == "down":
        return f"down.{step}.{inner}" if step <= depth else None
    return f"up.{step - 1}.conv.{inner}"
