"""Whether two predictors would give the same results, told by a short code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from kirie.models.contract import SegmentationModel

NO_MATTER = ("device", "batch_size", "measured")
FACTS = ("classes", "cleanup", "inputs", "settings", "max_detections", "artifact")


def fingerprint(predictor: Any) -> str:
    """32 hexadecimal digits that change with the weights of a predictor's models and with all settings of it and them.

    Where and in what batches it runs does not matter.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, predictor)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    digest.update(f"{type(value).__name__}:".encode())
    if isinstance(value, SegmentationModel):
        for model in value.modules():
            if isinstance(model, SegmentationModel):
                _feed(digest, [type(model).__name__, model.arguments, *(getattr(model, name, None) for name in FACTS)])
        for name, tensor in value.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(f"{name}=".encode())
            _feed(digest, value[name])
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        for each in value:
            _feed(digest, each)
    elif type(value).__module__.startswith("kirie.prediction") and hasattr(value, "__dict__"):
        _feed(digest, {name: each for name, each in vars(value).items() if name not in NO_MATTER})
    else:
        digest.update(repr(value).encode())
    digest.update(b";")
