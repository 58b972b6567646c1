"""What a machine has to train with."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        device: "cuda", "mps" or "cpu".
        name: of the accelerator; '' for none.
        cores: that this process may use.
        memory: bytes of main memory.
        device_memory: bytes of the accelerator's own; 0 without one, or where it shares the main memory.
    """

    device: str
    name: str
    cores: int
    memory: int
    device_memory: int

    @property
    def own_memory(self) -> int:
        """Bytes that a model and its batches have room in."""
        return self.device_memory or self.memory

    @property
    def words(self) -> str:
        """In a few words for a person."""
        gib = 2**30
        told = f"{self.cores} CPU cores, {self.memory / gib:.0f} GiB of memory"
        if self.device == "cpu":
            return f"{told}, no GPU"
        own = f" with {self.device_memory / gib:.0f} GiB" if self.device_memory else ""
        return f"{self.name or self.device}{own}, {told}"


def this_machine(device: str = "auto") -> Machine:
    """The machine that this runs on, and the device that a training on it takes.

    Args:
        device: "auto", or a name of torch's such as "cpu" or "cuda:1".
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = torch.device(device)
    name, own = "", 0
    if kind.type == "cuda":
        facts = torch.cuda.get_device_properties(kind)
        name, own = facts.name, facts.total_memory
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = 8 * 2**30  # not told on this system: what most machines have at least
    return Machine(kind.type, name, cores, memory, own)
