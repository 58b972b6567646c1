"""What a runtime is to the rest of kirie: it loads a graph from a file, runs it on arrays, and reads the note in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from kirie.errors import KirieError

Array = npt.NDArray[Any]
NOTE = "kirie"  # under which name a file keeps its note


class Graph(ABC):
    """A graph in memory, ready to run on the CPU.

    Args:
        path: its file.
        precision: "bf16" lets it compute in bfloat16 where the machine can; anything else is as the graph is.

    Raises:
        KirieError: when the file is damaged, or the runtime refuses it.
    """

    package: ClassVar[str]

    @abstractmethod
    def __init__(self, path: Path, precision: str = "fp32") -> None: ...

    @abstractmethod
    def __call__(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """The outputs by name, in the graph's order, for its inputs in their order."""

    @staticmethod
    @abstractmethod
    def note(path: Path) -> str | None:
        """The text that the file keeps for kirie, or None; without making it ready to run.

        Raises:
            KirieError: when the file is none of this runtime, or it is damaged.
        """

    @classmethod
    def check_installed(cls) -> None:
        """Raises a KirieError when the runtime's package is not there."""
        if find_spec(cls.package) is None:
            raise KirieError(f"{cls.package} is not installed: pip install 'kirie[export]'.")


def failed(inputs: Sequence[Array], error: Exception) -> KirieError:
    """What to say when a runtime cannot run a graph on inputs of these shapes."""
    shapes = ", ".join(str(tuple(array.shape)) for array in inputs)
    return KirieError(f"The exported model cannot be run on inputs of {shapes}: {_last_line(error)}")


def damaged(path: Path, error: Exception) -> KirieError:
    """What to say when a runtime cannot read a file."""
    return KirieError(f"{path} is damaged, or no file that this runtime reads: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    """Where runtimes say what is the matter; above it they tell where in their code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[-1] if lines else error!r:.300}"
