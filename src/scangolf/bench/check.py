"""Is a scan right? y and every gradient against float64, and twice the same bits.

The check runs on the whole inputs that are timed afterwards, so that it sees the same kernels and
the same cuts of the sequence. Only the truth is computed in parts, a few sequences and channels at
a time, because a float64 scan of everything would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scangolf.bench.floor import Shape
from scangolf.bench.operators import Operator, Tensors, results

ROOM_CPU, ROOM_GPU = 1 << 23, 1 << 28  # updates of the state that one part of the truth has


@dataclass(frozen=True)
class Verdict:
    """What a check found: relative errors of y and of each gradient, by name."""

    errors: dict[str, float]
    repeatable: bool
    within_limits: bool


def make_inputs(
    operator: Operator, shape: Shape, device: torch.device, dtype: torch.dtype
) -> tuple[Tensors, Tensor]:
    """Keyword arguments of the scan, which want gradients, and the gradient of y."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

    inputs = operator.draw(shape, normal, device)
    return {k: v.requires_grad_() for k, v in inputs.items()}, normal(*inputs[operator.like].shape)


def truth(operator: Operator, shape: Shape, inputs: Tensors, dy: Tensor) -> Tensors:
    """`results` in float64: of the loop over time on a CPU, on a GPU of the chunked reference,
    which the tests compare with the loop."""
    wanted = {"y": torch.zeros_like(dy, dtype=torch.float64)}
    wanted |= {k: torch.zeros_like(v, dtype=torch.float64) for k, v in inputs.items()}
    on_cpu = dy.device.type == "cpu"

    def scan(part: Tensors) -> Tensor:
        return operator.loop(part) if on_cpu else operator.scan(part, "reference")

    for where in _parts(operator, shape, inputs, ROOM_CPU if on_cpu else ROOM_GPU):
        part = {k: v.detach()[where[k]].double().requires_grad_() for k, v in inputs.items()}
        for name, value in results(scan, part, dy[where["y"]].double()).items():
            wanted[name][where[name]] += value
    return wanted


def compare(got: Tensors, again: Tensors, wanted: Tensors, limits: tuple[float, float]) -> Verdict:
    """Of two runs on the same inputs: the errors of the first, and whether they are the same.

    Limits: of the relative error of y, and of a gradient.
    """
    errors = {name: _relative_error(got[name], want) for name, want in wanted.items()}
    output, gradient = limits
    within = all(e <= (output if name == "y" else gradient) for name, e in errors.items())
    return Verdict(errors, all(torch.equal(got[n], again[n]) for n in wanted), within)


def _relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def _parts(
    operator: Operator, shape: Shape, inputs: Tensors, room: int
) -> Iterator[dict[str, tuple[slice, ...]]]:
    """Index of y and of each input for every part: whole sequences, of some channels or heads if
    need be."""
    batch, count = shape.batch, inputs[operator.like].shape[2]
    rows = max(1, room * batch // shape.updates)
    width = min(count, max(1, room * batch * count // shape.updates))
    for b in range(0, batch, rows):
        for c in range(0, count, width):
            row, some = slice(b, b + rows), slice(c, c + width)
            index = {
                name: (some,) if x.dim() <= 2 else (row, slice(None), some)
                for name, x in inputs.items()
            }
            index |= dict.fromkeys(operator.shared, (row,))
            yield index | {"y": index[operator.like]}
