"""Who takes part in the benchmark of a scan: our backends, and what stands beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.bench.floor import Shape
from scangolf.bench.operators import HEAD_SIZE, Contender, Operator, Tensors

MOST_UPDATES_OF_LOOP = 1 << 27
"""Autograd keeps several numbers of every update."""


def ours(operator: Operator, name: str, form: str, inputs: Tensors, dy: Tensor) -> Contender:
    return Contender(name, form, "ours", lambda x: operator.scan(x, name), inputs, dy)


def loop(operator: Operator, inputs: Tensors, dy: Tensor) -> Contender:
    """The recurrence a step at a time, with autograd's own gradients."""
    return Contender("loop", "plain recurrence", "peer", operator.loop, inputs, dy)


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
