"""Programs that run an exported network in place of PyTorch, looked up by name in one written table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kirie.errors import KirieError
from kirie.lookup import look_up

if TYPE_CHECKING:
    from kirie.runtimes.graph import Graph

RUNTIMES = {
    "onnx": "kirie.runtimes.onnx_graph:OnnxGraph",
    "openvino": "kirie.runtimes.openvino_graph:OpenVINOGraph",
}
ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}


def runtime_of(path: str | Path) -> str | None:
    """The runtime whose files end as this one does, or None."""
    suffix = Path(path).suffix.lower()
    return next((name for name, ending in ENDINGS.items() if ending == suffix), None)


def graph_class(runtime: str) -> type[Graph]:
    """What loads and runs the graphs of a runtime.

    Raises:
        KirieError: when there is no such runtime, or its package is not installed.
    """
    if runtime not in RUNTIMES:
        raise KirieError(f"There is no runtime {runtime!r:.60}; expected {', '.join(RUNTIMES)}.")
    found: type[Graph] = look_up(RUNTIMES[runtime])
    found.check_installed()
    return found
