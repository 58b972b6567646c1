"""What an architecture costs: parameters and operations counted without computing, time and memory measured now."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from kirie.errors import KirieError
from kirie.models import model_class
from kirie.models.contract import SegmentationModel

RUNS, FEWEST, PATIENCE = 5, 3, 5.0  # timed runs, at least as many, and seconds after which that is enough


@dataclass(frozen=True)
class ModelFacts:
    """An architecture with its default arguments.

    Attributes:
        name: the row of `MODELS`.
        task: semantic, instance or panoptic.
        parameters: how many numbers are learned, auxiliary heads included.
        gflops: operations of one forward pass in billions, a multiplication with its addition counted as one.
        advice: when to choose it.
        milliseconds: of a forward pass and decoding on this CPU, the median of a few runs; None when not measured.
        megabytes: weights and all tensors alive at once during it, at the most; None when not measured.
    """

    name: str
    task: str
    parameters: int
    gflops: float
    advice: str
    milliseconds: float | None = None
    megabytes: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what was not measured is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def describe(name: str, *, size: tuple[int, int] = (512, 512), classes: int = 21, measured: bool = False) -> ModelFacts:
    """The facts of an architecture with its default arguments, for one RGB picture of H x W = `size` pixels.

    Args:
        name: a row of `MODELS`.
        size: (H, W) of the picture.
        classes: K.
        measured: whether to run it on the CPU as well, which takes seconds.

    Raises:
        KirieError: when there is no such architecture or it cannot be built for so many classes.
    """
    if min(size) < 1 or max(size) > 2**14:
        raise KirieError(f"A picture has 1 to {2**14:,} pixels a side, got {size[0]} x {size[1]}.")
    build: Any = model_class(name)
    with torch.device("meta"):  # shapes alone
        outline: SegmentationModel = build(3, classes).eval()
        images = torch.empty(1, 3, *size)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        outline(images)
    facts = ModelFacts(
        name=name,
        task=outline.task,
        parameters=sum(parameter.numel() for parameter in outline.parameters()),
        gflops=counter.get_total_flops() / 2e9,
        advice=outline.advice,
    )
    if not measured:
        return facts
    seconds, peak = _measured(build(3, classes).eval(), size)
    return ModelFacts(**{**asdict(facts), "milliseconds": 1e3 * seconds, "megabytes": peak / 1e6})


@torch.inference_mode()
def _measured(model: SegmentationModel, size: tuple[int, int]) -> tuple[float, int]:
    """Seconds of a forward pass with decoding (median) and the bytes that its weights and tensors take at the most."""
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with _Alive([*model.parameters(), *model.buffers(), images]) as alive:
        model.decode(model(images), [size])  # warms up as well
    times: list[float] = []
    while len(times) < FEWEST or (len(times) < RUNS and sum(times) < PATIENCE):
        start = time.perf_counter()
        model.decode(model(images), [size])
        times.append(time.perf_counter() - start)
    return statistics.median(times), alive.most


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that are alive: those given, and every result of an operation until it dies."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.most = 0
        self.known: set[int] = set()
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        memory = tensor.untyped_storage()
        key, size = memory._cdata, memory.nbytes()
        if key not in self.known:  # views share the memory of what they look at
            self.known.add(key)
            self.bytes += size
            self.most = max(self.most, self.bytes)
            weakref.finalize(memory, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self.add(value)
        return result
