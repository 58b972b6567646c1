"""Where a training computes, and in which numbers."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as torch_distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from kirie.errors import KirieError
from kirie.models.device import pick_device


def accelerator(device: str, precision: str) -> Accelerator:
    """Accelerate's handle on device, processes and number format.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1"...; with several processes each takes a GPU of its own.
        precision: "auto", "fp32", "bf16" or "fp16".

    Raises:
        KirieError: when the machine has no such device, or the device does not compute in these numbers.
    """
    wanted = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if wanted.type == "cuda" and wanted.index is not None:
            torch.cuda.set_device(wanted)
        # Accelerate holds the first device and precision of a process for good; this training may have others.
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        handle = Accelerator(mixed_precision=mixed_precision(precision, wanted.type), cpu=wanted.type == "cpu")
    except ValueError as error:
        raise KirieError(
            f"train.precision {precision} does not work on the device {wanted.type}: {error} Set it to auto."
        ) from error
    if handle.num_processes > 1:
        # Threads of the process group that outlive the interpreter abort the process.
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)
    return handle


def _leave_group() -> None:
    """Ends this process's part in a training by several, while the interpreter is still whole."""
    if torch_distributed.is_initialized():
        torch_distributed.destroy_process_group()


def mixed_precision(precision: str, device: str) -> str:
    """Accelerate's name for a precision; "auto" becomes half precision where a device type computes in it natively."""
    if precision == "auto":
        if device == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device == "cpu" and cpu_has_bf16() else "no"
    return "no" if precision == "fp32" else precision


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16; without them the format is slower than float32. False when unknown."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.10 does not have it
    return any(capabilities.get(name) is True for name in ("avx512_bf16", "amx_bf16"))
