"""Who takes part in the benchmark of the scan: our backends, and what stands beside them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.bench.check import Tensors, results
from scangolf.bench.floor import Shape
from scangolf.errors import UserError
from scangolf.ops import selective_scan
from scangolf.ops.reference import selective_scan_sequential
from scangolf.ops.s6_backends import KERNELS, choose_backend, why_not

Role = Literal["ours", "peer", "orientation"]
MOST_UPDATES_OF_LOOP = 1 << 27
"""Autograd keeps several numbers of every update."""
HEAD_SIZE = 64


@dataclass(frozen=True)
class Contender:
    """Something to time: a function of its inputs, and the gradient of what it returns."""

    name: str
    form: str
    role: Role
    run: Callable[[Tensors], Tensor]
    inputs: Tensors
    grad: Tensor
    time_last: bool = False  # [B, D, L] instead of [B, L, D]

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.run(self.inputs)

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.run(self.inputs), list(self.inputs.values()), self.grad)

    def results(self) -> Tensors:
        """y and the gradients, in our layout."""
        found = results(self.run, self.inputs, self.grad)
        if not self.time_last:
            return found
        return {k: v.mT if v.dim() == 3 else v for k, v in found.items()}


def backends(inputs: Tensors) -> list[tuple[str, str]]:
    """Names to ask for and what runs: "auto" first, then the others that take the inputs."""
    u, A, B = inputs["u"], inputs["A"], inputs["B"]
    x = u, A, B if B.dim() == 4 else B.unsqueeze(2)
    resolved = choose_backend("auto", *x)
    others = [*KERNELS, "reference"] if u.is_cuda else ["reference"]
    able = [b for b in others if b != resolved and why_not(b, *x) is None]
    return [("auto", resolved), *((b, b) for b in able)]


def ours(name: str, form: str, inputs: Tensors, dy: Tensor) -> Contender:
    def run(x: Tensors) -> Tensor:
        return selective_scan(**x, delta_softplus=True, backend=name)  # type: ignore[call-overload]

    return Contender(name, form, "ours", run, inputs, dy)


def loop(inputs: Tensors, dy: Tensor) -> Contender:
    """The recurrence a step at a time, with autograd's own gradients."""

    def run(x: Tensors) -> Tensor:
        return selective_scan_sequential(**x, delta_softplus=True)  # type: ignore[arg-type, return-value]

    return Contender("loop", "plain recurrence", "peer", run, inputs, dy)


def mamba_ssm(inputs: Tensors, dy: Tensor) -> Contender | None:
    """The CUDA kernels of state-spaces/mamba, where they are installed."""
    try:
        interface: Any = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except Exception:  # a build for another torch fails in many ways
        return None

    def run(x: Tensors) -> Tensor:
        return interface.selective_scan_fn(**x, delta_softplus=True)

    x = {k: _time_last(v).requires_grad_() for k, v in inputs.items()}
    return Contender("mamba_ssm", "CUDA", "peer", run, x, _time_last(dy), time_last=True)


def attention(shape: Shape, device: torch.device, dtype: torch.dtype) -> Contender | None:
    """Causal attention of the same width: another layer, for orientation."""
    if shape.channels % HEAD_SIZE:
        return None
    heads = shape.channels // HEAD_SIZE
    size = (shape.batch, heads, shape.length, HEAD_SIZE)

    def run(x: Tensors) -> Tensor:
        return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=True)

    inputs = {n: torch.randn(size, device=device, dtype=dtype).requires_grad_() for n in "qkv"}
    grad = torch.randn(size, device=device, dtype=dtype)
    return Contender("attention", f"sdpa {heads} x {HEAD_SIZE}", "orientation", run, inputs, grad)


def parse_shape(text: str) -> tuple[int, int]:
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
        raise UserError(f"--shape {text}: expected batch x length, as in 16x4096")
    return int(batch), int(length)


def _time_last(x: Tensor) -> Tensor:
    return (x.detach().mT if x.dim() == 3 else x.detach()).clone(
        memory_format=torch.contiguous_format
    )
