"""SegFormer checkpoints of Hugging Face, such as `nvidia/segformer-b0-finetuned-ade-512-512`: any of B0 to B5.

Read by structure from the tensor names of `pytorch_model.bin` and `model.safetensors`, and from those that transformers
5 has in memory (`torch.save(model.state_dict())`). The code is Apache-2.0; NVIDIA's weights are licensed for research
and evaluation only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kirie.class_lists import ADE20K, CITYSCAPES
from kirie.errors import KirieError
from kirie.models.parts.mit_weights import joined, mit_name
from kirie.models.segformer import EXPANSIONS, HEADS, REDUCTIONS, SIZES
from kirie.weights.structure import axis, known_classes
from kirie.weights.translation import Translation

_HEAD = (
    (r"decode_head\.(?:linear_c|linear_projections)\.(\d+)\.proj\.(weight|bias)", r"fuse.linears.\1.\2"),
    (r"decode_head\.linear_fuse\.weight", r"fuse.mix.weight"),
    (r"decode_head\.batch_norm\.(\w+)", r"norm.\1"),
    (r"decode_head\.classifier\.(weight|bias)", r"head.\1"),
)
_CLASSES = {"ADE20K": ADE20K, "Cityscapes": CITYSCAPES}  # of the public files
_STAGES = range(4)


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has the names of a SegFormer or of its encoder alone."""
    return any(mit_name(name) == "stages.0.patch.proj.weight" for name in state)


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The SegFormer of a state dict with Hugging Face's names, at any width, depth, channel and class count.

    Raises:
        KirieError: when it is an encoder alone, or an entry is unknown, repeated, missing or no tensor.
    """
    if not any(name.startswith("decode_head.") for name in state):
        raise KirieError(
            "This is the encoder of a SegFormer alone, which cannot segment. Train with it: give the file as "
            "`encoder_weights` of a segformer (model.arguments in a recipe)."
        )
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = _renamed(name)
        if new is None or not isinstance(tensor, Tensor):
            raise KirieError(f"A SegFormer checkpoint of Hugging Face has no tensor {name!r:.120}.")
        if new in renamed:
            raise KirieError(f"{name!r:.120} is in the checkpoint a second time, under its other name.")
        renamed[new] = tensor
    found = joined(renamed)
    decoder = axis(found, "fuse.mix.weight", 0)  # a 1 x 1 convolution there
    found["fuse.mix.weight"] = found["fuse.mix.weight"].flatten(1)
    arguments, assumed = _arguments(found, decoder)
    classes, taken = known_classes(axis(found, "head.weight", 0), _CLASSES)
    return Translation(
        architecture="segformer",
        in_channels=axis(found, "encoder.stages.0.patch.proj.weight", 1),
        classes=classes,
        arguments=arguments,
        state=found,
        assumed=assumed | taken,
    )


def _renamed(name: str) -> str | None:
    inner = mit_name(name)
    if inner is not None:
        return f"encoder.{inner}"
    for pattern, ours in _HEAD:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(ours)
    return None


def _arguments(state: Mapping[str, Tensor], decoder: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The constructor's arguments by the shapes and the decoder's width, and what the shapes cannot tell."""
    stages = [f"encoder.stages.{i}" for i in _STAGES]
    widths = tuple(axis(state, f"{stage}.patch.proj.weight", 0) for stage in stages)
    # Different numbers are counted, not the highest one taken: a forged name must not ask for a billion blocks.
    blocks = (re.match(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.", name) for name in state)
    numbers = {(int(match[1]), int(match[2])) for match in blocks if match}
    depths = tuple(sum(1 for stage, _ in numbers if stage == i) for i in _STAGES)
    reductions = tuple(
        int(state[name].shape[-1]) if name in state and state[name].ndim == 4 else 1
        for name in (f"{stage}.blocks.0.attention.reduce.weight" for stage in stages)
    )
    expansions = tuple(
        axis(state, f"{stage}.blocks.0.ffn.expand.weight", 0, axes=2) // width
        for stage, width in zip(stages, widths, strict=True)
    )
    size = next((name for name, each in SIZES.items() if each == (widths, depths, decoder)), None)
    arguments: dict[str, Any] = {"size": size}
    if size is None:
        arguments = {"widths": widths, "depths": depths, "decoder_width": decoder}
    for name, found, usual in (("reductions", reductions, REDUCTIONS), ("expansions", expansions, EXPANSIONS)):
        if found != usual:
            arguments[name] = found
    if widths in (each.widths for each in SIZES.values()):
        return arguments, {}
    heads = HEADS if not any(w % n for w, n in zip(widths, HEADS, strict=True)) else tuple(-(-w // 32) for w in widths)
    if any(w % n for w, n in zip(widths, heads, strict=True)):
        heads = (1, 1, 1, 1)
    arguments["heads"] = heads
    return arguments, {"heads": f"{heads} attention heads per stage; otherwise give num_attention_heads of its config"}
