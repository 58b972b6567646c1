"""From another project's checkpoint file to a kirie model: read safely, recognise, translate, load strictly."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kirie.errors import KirieError
from kirie.models import model_class
from kirie.models.contract import SegmentationModel, not_finite
from kirie.weights import PUBLISHERS
from kirie.weights.translation import Translation


def import_checkpoint(path: str | Path) -> tuple[SegmentationModel, Translation]:
    """The model in a checkpoint of a known publisher, and how its entries were translated.

    Nothing in the file is executed: `.safetensors` holds arrays only, and `.pth` is read with `weights_only=True`.

    Args:
        path: a `.pth`, `.pt` or `.safetensors` file.

    Raises:
        KirieError: when the file cannot be read safely, no publisher's layout fits, or a tensor is missing, unknown or
            of the wrong shape.
    """
    path = Path(path)
    translation = translate(read_state(path), path)
    build: Any = model_class(translation.architecture)
    try:
        with torch.device("meta"):  # names and shapes alone: a wrong file must not cost memory
            outline = build(translation.in_channels, translation.classes, **translation.arguments)
        _compare(outline.state_dict(), translation, path)
        model: SegmentationModel = build(translation.in_channels, translation.classes, **translation.arguments)
    except KirieError as error:
        raise KirieError(f"{path} does not fit the {translation.architecture} it looks like: {error}") from error
    model.load_state_dict(translation.state, strict=False)  # all there, as compared, but for batch counters
    broken = not_finite(model)
    if broken:
        raise KirieError(f"{path} holds NaN or infinity in {len(broken)} tensors, the first is {broken[0]!r}.")
    return model.eval(), translation


def _compare(expected: Mapping[str, Tensor], translation: Translation, path: Path) -> None:
    found = translation.state
    # Batch counters have no effect in prediction and old files lack them.
    missing = sorted(n for n in set(expected) - set(found) if not n.endswith("num_batches_tracked"))
    extra = sorted(set(found) - set(expected))
    wrong = [f"{n}: {tuple(found[n].shape)}, expected {tuple(expected[n].shape)}"
             for n in expected if n in found and found[n].shape != expected[n].shape]  # fmt: skip
    if missing or extra or wrong:
        raise KirieError(f"missing {missing[:5]}, unknown {extra[:5]}, of another shape {wrong[:5]}.")


def read_state(path: Path) -> dict[str, Any]:
    """The entries of a checkpoint file by name: tensors, and the few other values that some releases carry.

    Raises:
        KirieError: when there is no such file or reading it would mean running code from it.
    """
    if not path.is_file():
        raise KirieError(f"There is no checkpoint file {path}.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler, zip reader and safetensors each raise kinds of their own
        # PyTorch's own words advise to run the code that it refused; only what it refused is worth repeating.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {refused[1]}" if refused else "it is cut short, no checkpoint, or holds more than tensors"
        raise KirieError(f"Cannot read {path} as weights without running code from it: {what}.") from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise KirieError(f"{path} holds {type(state).__name__}, expected tensors by name (a state dict).")
    unsound = [name for name, value in state.items() if isinstance(value, Tensor) and not _is_whole(value)]
    if unsound:
        raise KirieError(f"{path}: {unsound[0]!r} is no plain tensor with all its numbers in the file.")
    return dict(state)


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are all there; one repeated by strides could claim any size."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def translate(state: Mapping[str, Any], path: Path) -> Translation:
    """A state dict in kirie's terms, by the publisher whose layout it has.

    Raises:
        KirieError: when no publisher's layout fits.
    """
    for row in PUBLISHERS.values():
        module, _, name = row.partition(":")
        publisher = importlib.import_module(module)
        if publisher.recognises(state):
            translation: Translation = getattr(publisher, name)(state)
            return translation
    names = ", ".join(list(state)[:5])
    raise KirieError(
        f"{path} has the layout of no publisher that kirie knows ({', '.join(PUBLISHERS)}); its entries begin {names}."
    )
