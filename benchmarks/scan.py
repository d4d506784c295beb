"""Speed of the selective scan on this machine, beside the plain recurrence it is checked against.

    python benchmarks/scan.py
    python benchmarks/scan.py --shapes 8,1024,256,16 16,256,256,8 --repeats 30 --threads 2

A shape is batch,length,channels,state. Every row is checked first, outputs and all gradients
against the float64 recurrence on a few of its rows and steps; a row that fails gets no speed.
Times are medians in milliseconds, with the minimum in brackets.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from scangolf.ops import selective_scan
from scangolf.ops.reference import selective_scan_sequential

LIMITS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (4e-3, 1e-2)}  # outputs, gradients


@dataclass
class Options:
    shapes: list[str] = field(default_factory=lambda: ["8,1024,256,16", "16,256,256,8"])
    """Shapes to time: batch,length,channels,state."""
    repeats: int = 15
    """Timed runs of the operator; the plain recurrence, far slower, gets a fifth of them."""
    threads: int = 2
    """Threads of torch."""
    device: str = "cpu"
    """Where to run: cpu, cuda."""
    bf16: bool = False
    """Inputs in bfloat16; A, D and the bias stay in float32."""


def make_inputs(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    batch, length, channels, state = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    inputs = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels) - 3,
        "A": -torch.arange(1.0, state + 1, device=device).repeat(channels, 1),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(channels, dtype=torch.float32),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels, dtype=torch.float32),
    }
    return {k: v.requires_grad_() for k, v in inputs.items()}


def run(scan: Callable[..., Any], inputs: dict[str, Tensor], weight: Tensor) -> list[Tensor]:
    y = scan(**inputs, delta_softplus=True)
    return [y, *torch.autograd.grad(y, list(inputs.values()), weight.to(y.dtype))]


def worst_excess(inputs: dict[str, Tensor], weight: Tensor, dtype: torch.dtype) -> float:
    """Largest relative error as a multiple of its limit, on two rows and at most 200 steps."""
    short = {k: v.detach()[:2, :200] if v.dim() == 3 else v.detach() for k, v in inputs.items()}
    got, want = (
        run(
            scan,
            {k: v.to(t or v.dtype).requires_grad_() for k, v in short.items()},
            weight[:2, :200],
        )
        for scan, t in ((selective_scan, None), (selective_scan_sequential, torch.float64))
    )
    excess = 0.0
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        error = (a.double() - b).norm() / b.norm()
        excess = max(excess, error.item() / LIMITS[dtype][i > 0])
    return excess


def timed(work: Callable[[], object], repeats: int, device: str) -> list[float]:
    """Milliseconds of each run, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return times[1:]


def times_of(
    scan: Callable[..., Any], inputs: dict[str, Tensor], weight: Tensor, repeats: int, device: str
) -> tuple[list[float], list[float]]:
    """Of the forward pass alone, and of forward and backward."""
    with torch.no_grad():
        forward = timed(lambda: scan(**inputs, delta_softplus=True), repeats, device)
    return forward, timed(lambda: run(scan, inputs, weight), repeats, device)


def shown(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} ({min(times):.1f})"


def main(options: Options) -> int:
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    table = Table(title=f"selective scan, {options.device}, {dtype}, ms: median (minimum)")
    for column in ("batch, length, channels, state", "form", "forward", "fwd + bwd", "speed-up"):
        table.add_column(column)
    failed = False
    for text in options.shapes:
        shape = tuple(int(n) for n in text.split(","))
        inputs = make_inputs(shape, options.device, dtype)
        weight = torch.randn_like(inputs["u"])
        excess = worst_excess(inputs, weight, dtype)
        if not excess < 1:
            table.add_row(text, "operator", "wrong", f"{excess:.1f} x the allowed error", "none")
            failed = True
            continue
        slow, fast = (
            times_of(scan, inputs, weight, repeats, options.device)
            for scan, repeats in (
                (selective_scan_sequential, max(2, options.repeats // 5)),
                (selective_scan, options.repeats),
            )
        )
        gain = statistics.median(slow[1]) / statistics.median(fast[1])
        table.add_row(text, "plain recurrence", *map(shown, slow), "1.0")
        table.add_row(text, "operator", *map(shown, fast), f"{gain:.1f}")
    Console().print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
