"""Models written for other runtimes, each proved beside the original before it is kept; `TARGETS` is their table."""

from __future__ import annotations

TARGETS = {
    "openvino": "kirie.export.targets:OpenVINOParts",
    "onnx": "kirie.export.targets:OnnxParts",
    "torch": "kirie.export.targets:TorchParts",
}
