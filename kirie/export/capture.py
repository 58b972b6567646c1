"""From a model's modules to graphs: captured by `torch.export` for any batch and size, translated to ONNX.

ONNX is the one way out: OpenVINO reads it, so that there is one translation to prove.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kirie.errors import KirieError
from kirie.models.contract import SegmentationModel

OPSET = 18


class _Network(nn.Module):
    """A model's `network` without what only its loss reads."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.model.network(images)
        return {name: tensor for name, tensor in outputs.items() if name not in self.model.for_loss}


def network_program(model: SegmentationModel) -> tuple[Any, list[str]]:
    """The exported program of a model's network for any batch and size, and the names of its outputs.

    Raises:
        KirieError: when it cannot be captured so.
    """
    images = model.framed(torch.rand(2, model.in_channels, 137, 206))  # before that, of sides that little divides
    sizes = {0: torch.export.Dim("batch"), 2: _sides(model, "height"), 3: _sides(model, "width")}
    network = _Network(model)
    with torch.no_grad(), quiet():
        names = list(network(images))
        return _captured(network, (images,), (sizes,), type(model).__name__), names


def _sides(model: SegmentationModel, name: str) -> Any:
    """The sides that a graph takes, as `torch.export` is told them."""
    step, rest, least = model.frame
    least = max(least, model.least_side)
    if step == 1:
        return torch.export.Dim(name, min=least)
    times = step * torch.export.Dim(f"{name}_cells", min=-(-(least - rest) // step))
    return times + rest if rest else times


def head_program(model: SegmentationModel, name: str, inputs: tuple[Tensor, ...]) -> tuple[Any, list[str]]:
    """The exported program of one of a model's heads for any number of rows, and names for its outputs.

    Raises:
        KirieError: when it cannot be captured so.
    """
    head = model.get_submodule(name)
    rows = torch.export.Dim("rows")
    with torch.no_grad(), quiet():
        found = head(*inputs)
        count = len(found) if isinstance(found, tuple) else 1
        program = _captured(head, inputs, tuple({0: rows} for _ in inputs), f"{type(model).__name__}.{name}")
    return program, [f"output{index}" for index in range(count)]


def write_onnx(program: Any, names: list[str], path: Path) -> None:
    """Writes an exported program as an ONNX file, its outputs so named.

    Raises:
        KirieError: when ONNX has no counterpart for something in it.
    """
    with quiet():
        try:
            found = torch.onnx.export(
                program, opset_version=OPSET, output_names=names, dynamo=True, external_data=False, verbose=False
            )
        except Exception as error:  # of many kinds, as below
            raise KirieError(f"The graph of {path.name} cannot be translated to ONNX: {_first(error)}") from error
        assert found is not None
        for value in (value for node in found.model.graph for value in node.outputs):
            if not value.is_graph_output():
                value.shape = None  # some are those of the example where they are no plain symbols
        found.save(str(path))


def _captured(module: nn.Module, inputs: tuple[Tensor, ...], sizes: tuple[Any, ...], name: str) -> Any:
    try:
        return torch.export.export(module, inputs, dynamic_shapes=sizes, strict=False)
    except KirieError:
        raise
    except Exception as error:  # of many kinds, from every depth of the tracer
        raise KirieError(f"{name} cannot be captured as a graph for pictures of any size: {_first(error)}") from error


def _first(error: Exception) -> str:
    """The first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters tell of themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
