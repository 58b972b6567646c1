"""What is written for each runtime: the files of the network and of the heads, and a note in the first of them."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from kirie.data.dataset import Dataset
from kirie.export.capture import head_program, network_program, quiet, write_onnx
from kirie.export.precision import calibration, halve_weights, quantised
from kirie.models.contract import SegmentationModel
from kirie.runtimes import graph_class
from kirie.runtimes.graph import NOTE, Array, Graph
from kirie.runtimes.record import head_file


class Parts(ABC):
    """The files of one export while they are made.

    Args:
        path: that of the network, in a folder of drafts.
        model: the original, on the CPU.
        precision: one of `precisions`.

    Attributes:
        ending: of the network's file.
        precisions: that there are for this target.
        packages: that it takes; of int8, nncf besides.
    """

    ending: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path, model: SegmentationModel, precision: str) -> None:
        self.path, self.model, self.precision = path, model, precision

    @abstractmethod
    def write(self, calibrating: Dataset | None) -> None:
        """Writes the files, for int8 with pictures to calibrate by."""

    @abstractmethod
    def annotate(self, note: str) -> None:
        """Puts the note into the network's file."""

    @abstractmethod
    def graph(self, path: Path, precision: str) -> Graph:
        """A file that was written, ready to run."""

    def files(self) -> dict[str, Path]:
        """All of them by name."""
        return {file.name: file for file in self.path.parent.iterdir() if file.is_file()}

    def programs(self) -> list[tuple[str, Path, Any, list[str]]]:
        """Name ("" for the network), file, program and outputs of every graph."""
        found = [("", self.path, *network_program(self.model))]
        for name, inputs in self.model.heads().items():
            found.append((name, head_file(self.path, name), *head_program(self.model, name, inputs)))
        return found


class OnnxParts(Parts):
    """For ONNX Runtime and all else that reads ONNX."""

    ending = ".onnx"
    precisions = ("fp32", "fp16", "int8")
    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, calibrating: Dataset | None) -> None:
        """See `Parts`."""
        import onnx

        programs = self.programs()  # before the model is put into another memory format to calibrate by it
        seen = {} if calibrating is None else calibration(self.model, calibrating, tuple(self.model.heads()))
        for name, file, program, outputs in programs:
            write_onnx(program, outputs, file)
            if self.precision == "fp16":
                halve_weights(file)
            if self.precision == "int8":
                model = onnx.load(str(file))
                onnx.save(quantised(model, seen[name], [each.name for each in model.graph.input]), str(file))

    def annotate(self, note: str) -> None:
        """See `Parts`."""
        import onnx

        model = onnx.load(str(self.path))
        onnx.helper.set_model_props(model, {NOTE: note})
        onnx.save(model, str(self.path))

    def graph(self, path: Path, precision: str) -> Graph:
        """See `Parts`."""
        return graph_class("onnx")(path, precision)


class OpenVINOParts(Parts):
    """For OpenVINO: an .xml and a .bin each."""

    ending = ".xml"
    precisions = ("fp32", "bf16", "fp16", "int8")
    packages = ("onnx", "onnxscript", "openvino")

    def write(self, calibrating: Dataset | None) -> None:
        """See `Parts`."""
        import openvino

        programs = self.programs()  # before the model is put into another memory format to calibrate by it
        seen = {} if calibrating is None else calibration(self.model, calibrating, tuple(self.model.heads()))
        for name, file, program, outputs in programs:
            between = file.with_suffix(".onnx")
            write_onnx(program, outputs, between)
            model = openvino.Core().read_model(str(between))
            if self.precision == "int8":
                model = quantised(model, seen[name], [each.get_any_name() for each in model.inputs])
            with _as_system_fault():
                openvino.save_model(model, str(file), compress_to_fp16=self.precision == "fp16")
            del model
            between.unlink()

    def annotate(self, note: str) -> None:
        """See `Parts`."""
        import openvino

        model = openvino.Core().read_model(str(self.path))
        model.set_rt_info(note, [NOTE])
        other = self.path.with_name(f"noted-{self.path.name}")
        with _as_system_fault():
            openvino.serialize(model, str(other))
        del model  # it reads its weights from the file that is replaced now
        for each in (other, other.with_suffix(".bin")):
            each.replace(each.with_name(each.name.removeprefix("noted-")))

    def graph(self, path: Path, precision: str) -> Graph:
        """See `Parts`."""
        return graph_class("openvino")(path, precision)


@contextmanager
def _as_system_fault() -> Iterator[None]:
    """Faults of OpenVINO's writer, which tells all of them alike, as those of the system."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"OpenVINO tells {' '.join(str(error).split())[-80:]!r}") from error


class TorchParts(Parts):
    """Programs of `torch.export`, for PyTorch without kirie.

    Kirie itself writes but never reads them: reading one unpickles what is in it, and can run code.
    """

    ending = ".pt2"
    precisions = ("fp32",)
    packages = ()

    def write(self, calibrating: Dataset | None) -> None:
        """See `Parts`."""
        self._programs = {file: program for _, file, program, _ in self.programs()}
        self._save({})

    def annotate(self, note: str) -> None:
        """See `Parts`."""
        self._save({f"{NOTE}.json": note})

    def _save(self, extra: dict[str, str]) -> None:
        for file, program in self._programs.items():
            whole = io.BytesIO()  # its writer ends the process where the system refuses to write
            with quiet():
                torch.export.save(program, whole, extra_files=extra if file == self.path else {})
            file.write_bytes(whole.getbuffer())

    def graph(self, path: Path, precision: str) -> Graph:
        """See `Parts`."""
        return _Program(path)


class _Program(Graph):
    """A program that this process has written itself."""

    package = "torch"

    def __init__(self, path: Path, precision: str = "fp32") -> None:
        self._run = torch.export.load(path).module()

    def __call__(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """See `Graph`."""
        with torch.no_grad():
            found = self._run(*(torch.from_numpy(array) for array in inputs))
        if not isinstance(found, dict):
            found = {f"output{i}": x for i, x in enumerate(found if isinstance(found, tuple) else (found,))}
        return {name: tensor.numpy() for name, tensor in found.items()}

    @staticmethod
    def note(path: Path) -> str | None:
        """See `Graph`."""
        return None
