"""Is a selective scan right? y and every gradient against float64, and twice the same bits.

The check runs on the whole inputs that are timed afterwards, so that it sees the same kernels and
the same cuts of the sequence. Only the truth is computed in parts, a few sequences and channels at
a time, because a float64 scan of everything would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from scangolf.bench.floor import Shape
from scangolf.ops import selective_scan
from scangolf.ops.reference import selective_scan_sequential

Tensors = dict[str, Tensor]

LIMITS = {  # relative error of y, and of a gradient
    torch.bfloat16: (4e-3, 1e-2),
    torch.float16: (4e-3, 1e-2),
    torch.float32: (1e-5, 1e-4),
}
ROOM_CPU, ROOM_GPU = 1 << 23, 1 << 28  # updates of the state that one part of the truth has


@dataclass(frozen=True)
class Verdict:
    """What a check found: relative errors of y and of each gradient, by name."""

    errors: dict[str, float]
    repeatable: bool
    within_limits: bool


def make_inputs(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Tensors, Tensor]:
    """Keyword arguments of the scan, which want gradients, and the gradient of y."""
    batch, length, channels, state = astuple(shape)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

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
    return {k: v.requires_grad_() for k, v in inputs.items()}, normal(batch, length, channels)


def results(scan: Callable[[Tensors], Tensor], inputs: Tensors, dy: Tensor) -> Tensors:
    """y and the gradients, by the names of the inputs."""
    y = scan(inputs)
    grads = torch.autograd.grad(y, list(inputs.values()), dy)
    return {"y": y.detach()} | dict(zip(inputs, grads, strict=True))


def truth(inputs: Tensors, dy: Tensor) -> Tensors:
    """`results` in float64: of the loop over time on a CPU, on a GPU of the chunked reference,
    which the tests compare with the loop."""
    wanted = {"y": torch.zeros_like(dy, dtype=torch.float64)}
    wanted |= {k: torch.zeros_like(v, dtype=torch.float64) for k, v in inputs.items()}
    on_cpu = dy.device.type == "cpu"

    def scan(part: Tensors) -> Tensor:
        if on_cpu:
            y = selective_scan_sequential(**part, delta_softplus=True)  # type: ignore[arg-type]
            assert isinstance(y, Tensor)
            return y
        return selective_scan(**part, delta_softplus=True, backend="reference")  # type: ignore[call-overload]

    for where in _parts(inputs, ROOM_CPU if on_cpu else ROOM_GPU):
        part = {k: v.detach()[where[k]].double().requires_grad_() for k, v in inputs.items()}
        for name, value in results(scan, part, dy[where["u"]].double()).items():
            wanted[name][where["u" if name == "y" else name]] += value
    return wanted


def compare(got: Tensors, again: Tensors, wanted: Tensors, dtype: torch.dtype) -> Verdict:
    """Of two runs on the same inputs: the errors of the first, and whether they are the same."""
    errors = {name: _relative_error(got[name], want) for name, want in wanted.items()}
    output, gradient = LIMITS[dtype]
    within = all(e <= (output if name == "y" else gradient) for name, e in errors.items())
    return Verdict(errors, all(torch.equal(got[n], again[n]) for n in wanted), within)


def _relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def _parts(inputs: Tensors, room: int) -> Iterator[dict[str, tuple[slice, ...]]]:
    """Index of each input for every part: whole sequences, of some channels if need be."""
    (batch, length, channels), state = inputs["u"].shape, inputs["A"].shape[1]
    rows = max(1, room // (length * channels * state))
    width = min(channels, max(1, room // (length * state)))
    for b in range(0, batch, rows):
        for c in range(0, channels, width):
            row, channel = slice(b, b + rows), slice(c, c + width)
            index = dict.fromkeys(("u", "delta", "z"), (row, slice(None), channel))
            index |= {"B": (row,), "C": (row,)}
            yield index | dict.fromkeys(("A", "D", "delta_bias"), (channel,))
