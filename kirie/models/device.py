"""Where a model computes: devices by name, and the sentence when their memory does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kirie.errors import KirieError


def pick_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is a GPU where there is one, else the CPU.

    Raises:
        KirieError: when the name is no device or the machine has none of its kind.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # some devices exist as a name only
    except Exception as error:  # every backend complains in its own way
        raise KirieError(f"There is no device {name!r} here; there is {', '.join(['auto', *_devices()])}.") from error
    return probe.device


@contextmanager
def memory_for(what: str, device: torch.device, *, mend: str) -> Iterator[None]:
    """Tells a lack of memory inside the block in a sentence.

    Args:
        what: what the memory is needed for.
        device: whose memory it is.
        mend: what to do about it, a sentence.

    Raises:
        KirieError: in place of torch's errors when the memory does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise KirieError(f"The memory of {device} does not suffice for {what}. {mend}") from None


def _devices() -> list[str]:
    found = torch.accelerator.current_accelerator(check_available=True)
    count = 0 if found is None else torch.accelerator.device_count()
    return ["cpu", *(f"{found.type}:{index}" for index in range(count) if found is not None)]


def _is_lack_of_memory(error: Exception) -> bool:
    # On a CPU torch has no kind of error of its own for it, and words it by the system.
    words = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "allocate memory" in words
        or "not enough memory" in words
    )
