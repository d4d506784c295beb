"""What a GPU ran: every kernel's time, and groups of them, from torch's profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("flash", "fmha", "attention", "cudnn"),
    "convolutions": ("conv_",),
    "norms, rotations": ("gated_norm", "rotate"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "matmul", "splitkreduce", "product"),
    "scans": ("forward", "backward", "scan", "rule_kernel", "inverse_kernel", "adjoint",
              "scores_kernel", "keys_kernel", "summar", "ssd", "s6"),
    "copies": ("memcpy", "memset", "copy"),
    "optimiser": ("adam", "multi_tensor", "foreach"),
    "compiled": ("triton_",),
}  # fmt: skip
"""Parts of names, in small letters; a kernel belongs to the first group that has one in it. Kernels
that torch.compile wrote begin with the last."""
OTHERS = "others"


@dataclass(frozen=True)
class Kernel:
    """All calls of one kernel in an average step."""

    name: str
    ms: float
    calls: float


def record(work: Callable[[], object], steps: int) -> list[Kernel]:
    """The kernels of `work`, which makes so many steps; the longest first."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        torch.cuda.synchronize()
    found = [
        Kernel(event.key, 1e-3 * event.self_device_time_total / steps, event.count / steps)
        for event in profiler.key_averages()
        if event.self_device_time_total > 0
    ]
    return sorted(found, key=lambda kernel: -kernel.ms)


def groups(kernels: list[Kernel]) -> dict[str, list[Kernel]]:
    """By `GROUPS`, the group with the most time first."""
    found: defaultdict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        found[_group(kernel.name.lower())].append(kernel)
    return dict(sorted(found.items(), key=lambda item: -sum(k.ms for k in item[1])))


def _group(name: str) -> str:
    if name.startswith(GROUPS["compiled"]):  # their names tell of what they were fused from
        return "compiled"
    parts = ((group, part) for group, parts in GROUPS.items() for part in parts)
    return next((group for group, part in parts if part in name), OTHERS)
