"""How much memory a model needs for a picture, how much there is, and giving back what is freed."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kirie.models.contract import SegmentationModel

PROBE = 256  # pixels a side of the picture by which a model is measured
UNKNOWN = 2048  # bytes for each pixel, of a network that another program runs
TRIM_EVERY = 0.2  # seconds, at least
TRIM_SHARE = 1 / 40  # of the time, at most
# Files of a control group: the limit, what is used, and the part of it that is given back when memory is short.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")
AT_ONCE = 3  # so many times what its hungriest layer takes and gives is alive at once, skips and copies included


@torch.inference_mode()
def bytes_per_pixel(model: SegmentationModel) -> float:
    """About how many bytes prediction takes for each pixel that the network sees.

    It is counted on a small grey picture: what the layer with the largest input and output holds, three times, and the
    probabilities of all classes. What an exported model takes is not told; a network of middle size is assumed.
    """
    if model.artifact is not None:
        return UNKNOWN + 16 * len(model.classes)
    most = 0

    def count(layer: nn.Module, given: Any, result: Any) -> None:
        nonlocal most
        held = [part for part in (*_flat(given), *_flat(result)) if isinstance(part, Tensor)]
        most = max(most, sum(part.numel() * part.element_size() for part in held))

    layers = [layer for layer in model.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        model(torch.full((1, model.in_channels, PROBE, PROBE), 0.5, device=model.mean.device))
    finally:
        for hook in hooks:
            hook.remove()
    return AT_ONCE * most / PROBE**2 + 16 * len(model.classes)


def free_memory(device: torch.device) -> int:
    """Bytes of a device's memory that nothing uses at the moment, within what a container or a batch system allows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_of_machine(), *_of_groups(Path("/"))])


def trim_heap() -> None:
    """Gives freed memory back to the system where the C library, glibc, keeps it between what is in use.

    After an hour of tiles that comes to hundreds of megabytes. It takes some milliseconds for each hundred.
    """
    with suppress(OSError, TypeError, AttributeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)


class HeapTrimmer:
    """`trim_heap` as work goes on, to be called after each part of it: at most every 0.2 s, in 1/40 of the time."""

    def __init__(self) -> None:
        self._due = time.monotonic() + TRIM_EVERY

    def __call__(self) -> None:
        """Gives freed memory back if that is due."""
        begun = time.monotonic()
        if begun < self._due:
            return
        trim_heap()
        ended = time.monotonic()
        self._due = ended + max(TRIM_EVERY, (ended - begun) / TRIM_SHARE)


def _of_groups(root: Path) -> Iterator[int]:
    """Bytes that are left in each of the control groups of this process which has a limit; of Linux, at `root`."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        if line.count(":") < 2:
            continue
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        home = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        most, held, cache = _V1 if kinds else _V2
        place = home / path.lstrip("/")
        for group in (place, *place.parents):
            with suppress(OSError, ValueError):  # without a limit there is no file, or no number in it
                limit, used = (int((group / name).read_text(encoding="ascii")) for name in (most, held))
                if limit >= 0:
                    yield min(limit, max(0, limit - used + _counted(group / "memory.stat", cache)))
            if group == home:
                break


def _counted(stat: Path, name: str) -> int:
    """A number of a file of names and numbers; 0 where it is not told."""
    with suppress(OSError, ValueError, LookupError, StopIteration):
        lines = stat.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name} "))
    return 0


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30  # not told on this system: half of what most machines have at least


def _flat(value: Any) -> tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return tuple(part for each in value for part in _flat(each))
    return (value,)
