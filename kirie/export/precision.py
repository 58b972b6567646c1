"""Smaller numbers for a graph: weights of 16 bits, or 8 bits throughout, calibrated on pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kirie.data.dataset import Dataset
from kirie.errors import KirieError
from kirie.models.contract import SegmentationModel
from kirie.prediction.predictor import Predictor
from kirie.progress import tracked
from kirie.runtimes.graph import Array

CALIBRATED = 48  # pictures that are looked at
ROWS = 64  # regions of a picture that calibrate a head, at the most

# What multiplies by weights, as ONNX and OpenVINO call it.
LAYERS = {
    "Conv", "ConvTranspose", "MatMul", "Gemm",
    "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData",
}  # fmt: skip

Inputs = list[tuple[Array, ...]]


def calibration(model: SegmentationModel, dataset: Dataset, names: Sequence[str]) -> dict[str, Inputs]:
    """What comes into a model's network (under the name "") and its heads, from pictures evenly chosen.

    Args:
        model: the original.
        dataset: pictures with truth.
        names: of the heads.
    """
    seen: dict[str, Inputs] = {name: [] for name in ("", *names)}

    def watch(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if name == "" or len(inputs[0]):
                kept = inputs if name == "" else tuple(x[:ROWS] for x in inputs)
                seen[name].append(tuple(np.ascontiguousarray(x.cpu().numpy()) for x in kept))

        return hook

    watched = {name: model.get_submodule(name) for name in seen}
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in watched.items()]
    try:
        predictor = Predictor(model, device="cpu")
        places = np.unique(np.linspace(0, len(dataset) - 1, min(CALIBRATED, len(dataset))).round().astype(int))
        for index in tracked(places.tolist(), "calibrating"):
            predictor([dataset[index].image])
    finally:
        for handle in handles:
            handle.remove()
    return seen


def quantised(graph: Any, inputs: Inputs, names: Sequence[str]) -> Any:
    """A graph whose convolutions and matrix products compute in 8 bits, and what follows them where it can.

    What is done to pictures before the first of them stays as it was: of a mean and a deviation that were taken in
    8 bits little would be left.

    Args:
        graph: of OpenVINO or of ONNX.
        inputs: what it is calibrated by.
        names: of its inputs.

    Raises:
        KirieError: when there is nothing to calibrate by.
    """
    import nncf

    if not inputs:
        raise KirieError("The model finds no object in these pictures, so that its heads cannot be calibrated.")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    rows = [dict(zip(names, row, strict=True)) for row in inputs]
    kept = nncf.IgnoredScope(names=list(_before_layers(graph)), validate=False)
    return nncf.quantize(graph, nncf.Dataset(rows), subset_size=len(rows), ignored_scope=kept)


def _before_layers(graph: Any) -> Iterator[str]:
    """The names of the nodes of a graph to which no layer leads."""
    behind: set[str] = set()
    for name, kind, sources, results in _nodes(graph):
        if kind in LAYERS or not behind.isdisjoint(sources):
            behind.update(results)
        else:
            yield name


def _nodes(graph: Any) -> Iterator[tuple[str, str, Sequence[str], Sequence[str]]]:
    """Name, kind, inputs and outputs of the nodes of an ONNX or OpenVINO graph, each behind those that lead to it."""
    if hasattr(graph, "get_ordered_ops"):
        for node in graph.get_ordered_ops():
            sources = [each.get_source_output().get_node().get_friendly_name() for each in node.inputs()]
            yield node.get_friendly_name(), node.get_type_name(), sources, [node.get_friendly_name()]
        return
    for node in graph.graph.node:
        yield node.name, node.op_type, node.input, node.output


def halve_weights(path: Path) -> None:
    """Rewrites an ONNX file with weights of 16 bits, which are widened again when it is loaded."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(path))
    widened = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or int(np.prod(weight.dims)) < 64:
            continue
        name, values = weight.name, numpy_helper.to_array(weight)
        limit = float(np.finfo(np.float16).max)
        weight.CopyFrom(numpy_helper.from_array(values.clip(-limit, limit).astype(np.float16), f"{name}_half"))
        widened.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    for node in reversed(widened):
        model.graph.node.insert(0, node)
    onnx.save(model, str(path))
