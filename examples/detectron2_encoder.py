"""Detectron2's ImageNet weights (MSRA/R-50.pkl, R-101.pkl) as a file for `encoder_weights`, in timm's layout.

    python examples/detectron2_encoder.py R-50.pkl data/msra_r50.safetensors

They were learned on pictures in 0..255, blue, green, red, and with the stride in the first 1 x 1 convolution of a
bottleneck: give the model `encoder_options: {stride_first: true}`, and the mean and std of the recipes in recipes/coco.
The first convolution is turned round here, so that it takes red, green, blue.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kirie.weights.read import read_state, unwrapped


def renamed(name: str) -> str | None:
    """Timm's name of an entry of the stem or of a stage, None for all else."""
    if match := re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", name):
        return f"{'bn1' if match[1] else 'conv1'}.{match[2]}"
    if match := re.fullmatch(r"res([2-5])\.(\d+)\.(?:conv([123])|shortcut)\.(norm\.)?(\w+)", name):
        stage, block, number, norm, leaf = match.groups()
        layer = f"{'bn' if norm else 'conv'}{number}" if number else f"downsample.{1 if norm else 0}"
        return f"layer{int(stage) - 1}.{block}.{layer}.{leaf}"
    return None


def main(source: str, destination: str) -> None:
    """Reads the one file, without running anything in it, and writes the other."""
    tensors: dict[str, Tensor] = {}
    state, _ = unwrapped(read_state(Path(source)), Path(source))
    for name, value in state.items():
        new = renamed(name)
        if new is not None:
            tensors[new] = torch.as_tensor(value).clone().contiguous()
    tensors["conv1.weight"] = tensors["conv1.weight"].flip(1).contiguous()
    Path(destination).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, destination)
    print(f"{len(tensors)} tensors: {destination}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
