"""Backbones from timm: feature maps at several strides, weights from the hub or from a local file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from kirie.errors import KirieError


class Encoder(nn.Module):
    """A timm network cut into stages.

    Args:
        name: a timm architecture such as `resnet34`, `mobilenetv2_100`, `convnext_tiny`.
        in_channels: C of the images.
        stages: how many stages to keep, finest first; None for all.
        weights: None for random weights, "hub" for timm's pretrained ones (needs a network), or the path of a local
            `.safetensors` or `.pth` file in timm's own layout.

    Attributes:
        channels: of each feature map, finest first.
        strides: of each feature map, finest first.
        mean: (C,) that the network expects to be subtracted from images in [0, 1].
        std: (C,) that it expects them to be divided by.

    Raises:
        KirieError: when timm has no such architecture or it gives no feature maps, or the weights cannot be had.
    """

    def __init__(
        self, name: str, in_channels: int = 3, *, stages: int | None = None, weights: str | None = None
    ) -> None:
        super().__init__()
        # A name such as "hf-hub:someone/something" would make timm fetch and build what a stranger wrote.
        if not isinstance(name, str) or not timm.is_model(name.split(".")[0]) or ":" in name or "/" in name:
            near = _near(str(name))
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise KirieError(f"timm has no encoder called {name!r}{hint}.")
        keep: dict[str, Any] = {} if stages is None else {"out_indices": tuple(range(stages))}
        try:
            body: Any = timm.create_model(
                name, features_only=True, in_chans=in_channels, pretrained=weights == "hub", **keep
            )
        except Exception as error:  # timm raises many kinds: no features, no network, no pretrained weights
            raise KirieError(f"timm cannot give {name!r} with weights {weights or 'at random'}: {error}") from error
        self.body = body
        self.channels: list[int] = list(body.feature_info.channels())
        self.strides: list[int] = list(body.feature_info.reduction())
        if any(fine * 2 != coarse for fine, coarse in pairwise(self.strides)) or self.strides[0].bit_count() != 1:
            raise KirieError(f"{name!r} gives features at strides {self.strides}; an encoder must halve at each stage.")
        self._try_out(name, in_channels)
        facts: Any = timm.get_pretrained_cfg(name)
        rgb = in_channels == 3 and facts is not None
        self.mean = tuple(facts.mean) if rgb else (0.5,) * in_channels
        self.std = tuple(facts.std) if rgb else (0.25,) * in_channels
        if weights not in (None, "hub"):
            self._read(Path(str(weights)), in_channels)

    def _try_out(self, name: str, in_channels: int) -> None:
        """Runs one small picture: some networks of timm accept a single size, or put channels last."""
        height, width = 2 * self.strides[-1], 3 * self.strides[-1]
        expected = [(1, c, height // s, width // s) for c, s in zip(self.channels, self.strides, strict=True)]
        self.body.eval()
        try:
            with torch.no_grad():
                found = [tuple(map_.shape) for map_ in self.body(torch.zeros(1, in_channels, height, width))]
        except Exception as error:  # asserts and shape errors of many kinds
            raise KirieError(f"{name!r} does not take pictures of any size, as an encoder must: {error}") from error
        if found != expected:
            raise KirieError(f"{name!r} gives features of shapes {found}; an encoder must give {expected}.")
        self.body.train()

    def _read(self, path: Path, in_channels: int) -> None:
        if not path.is_file():
            raise KirieError(f"There is no encoder weight file {path}.")
        try:
            if path.suffix == ".safetensors":
                state: Any = load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise KirieError(f"Cannot read encoder weights from {path}: {error}") from error
        if not isinstance(state, Mapping):
            raise KirieError(f"{path} holds {type(state).__name__}, expected tensors by name (a state dict).")
        # Cut into stages, a network's tensors may be called stages_0.x or model.stages.0.x in place of stages.0.x.
        given = {_plain(str(name)): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
        own = self.body.state_dict()
        chosen = {name: _for_channels(given[_plain(name)], tensor, in_channels)
                  for name, tensor in own.items() if _plain(name) in given}  # fmt: skip
        missing = [name for name in own if name not in chosen and not name.endswith("num_batches_tracked")]
        if missing:
            raise KirieError(f"{path} lacks {len(missing)} tensors of this encoder, the first is {missing[0]!r}.")
        wrong = [name for name, tensor in chosen.items() if tensor.shape != own[name].shape]
        if wrong:
            raise KirieError(
                f"{path} has {len(wrong)} tensors of another shape, the first is {wrong[0]!r}: "
                f"{tuple(chosen[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}."
            )
        self.body.load_state_dict(chosen, strict=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C_i, H / stride_i, W / stride_i), finest first, for images (B, C, H, W)."""
        features: list[Tensor] = self.body(images)
        return features


def _near(name: str) -> list[str]:
    """Architectures of timm whose names are like a mistyped one."""
    stem = re.split(r"[/.:]", name)[-1] or name
    return difflib.get_close_matches(stem, timm.list_models(), n=6, cutoff=0.6)


def _plain(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def _for_channels(weight: Tensor, own: Tensor, in_channels: int) -> Tensor:
    """A first convolution learned on RGB, made to fit other channels as timm does for weights from the hub."""
    if in_channels == 3 or weight.ndim != 4 or weight.shape[1] != 3 or own.shape[1:2] != (in_channels,):
        return weight
    adapted: Tensor = adapt_input_conv(in_channels, weight)
    return adapted
