"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kirie.runtimes.graph import NOTE, Array, Graph, damaged, failed


class OnnxGraph(Graph):
    """See `Graph`."""

    package = "onnxruntime"

    def __init__(self, path: Path, precision: str = "fp32") -> None:
        self._session = _session(path)
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """See `Graph`."""
        given = {name: np.ascontiguousarray(array) for name, array in zip(self._inputs, inputs, strict=True)}
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))
        except Exception as error:  # of kinds of its own, as below
            raise failed(inputs, error) from error

    @staticmethod
    def note(path: Path) -> str | None:
        """See `Graph`."""
        session = _session(path, optimised=False)
        try:
            found: str | None = session.get_modelmeta().custom_metadata_map.get(NOTE)
        except UnicodeDecodeError as error:
            raise damaged(path, error) from error
        return found


def _session(path: Path, *, optimised: bool = True) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: what else it tells is for its developers
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of kinds of its own, one for each way to fail
        raise damaged(path, error) from error
