"""Which device a run uses, and what it computes in there."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scangolf.errors import OutOfMemory, UserError


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU, else Apple's, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not usable here ({reason}); try --device cpu") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: needs auto, cpu, cuda or mps")
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it natively, else float32."""
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


@contextmanager
def within_memory(device: torch.device, what: str, instead: str) -> Iterator[None]:
    """Raises OutOfMemory where `what` is too large for the GPU: what to do `instead`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{what} is too large for the memory of {device}; {instead}") from error


def describe(device: torch.device) -> str:
    """The device in words, for logs and summaries."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
