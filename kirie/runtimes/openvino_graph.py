"""OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kirie.errors import KirieError
from kirie.runtimes.graph import NOTE, Array, Graph, damaged, failed


class OpenVINOGraph(Graph):
    """See `Graph`."""

    package = "openvino"

    def __init__(self, path: Path, precision: str = "fp32") -> None:
        model = _read(path)
        # Left to itself OpenVINO computes in bfloat16 wherever the machine can, which no proof would stand for.
        hint = "bf16" if precision == "bf16" else "f32"
        try:
            self._compiled = _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        except RuntimeError as error:
            raise damaged(path, error) from error
        self._names = [output.get_any_name() for output in self._compiled.outputs]

    def __call__(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """See `Graph`."""
        try:
            found = self._compiled([np.ascontiguousarray(array) for array in inputs], share_inputs=True)
        except RuntimeError as error:
            raise failed(inputs, error) from error
        return {name: found[index] for index, name in enumerate(self._names)}

    @staticmethod
    def note(path: Path) -> str | None:
        """See `Graph`."""
        model = _read(path)
        if not model.has_rt_info([NOTE]):
            return None
        try:
            text: str = model.get_rt_info([NOTE]).astype(str)
        except UnicodeDecodeError as error:
            raise damaged(path, error) from error
        return text


def _core() -> Any:
    import openvino

    return openvino.Core()


def _read(path: Path) -> Any:
    if not path.with_suffix(".bin").is_file():
        raise KirieError(f"{path} needs {path.stem}.bin beside it, which is missing: copy it too, or export anew.")
    try:
        return _core().read_model(str(path))
    except (RuntimeError, UnicodeDecodeError) as error:
        raise damaged(path, error) from error
