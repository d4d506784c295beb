"""The gated delta rule in the benchmark: heads of 64 values, keys and queries of norm 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.bench.floor import Shape
from scangolf.bench.operators import (
    HEAD_SIZE,
    Contender,
    Normal,
    Operator,
    Tensors,
    able,
    heads,
    pairs,
    peer_function,
)
from scangolf.ops import gated_delta_rule
from scangolf.ops.gdn_backends import KERNELS, choose_backend, why_not
from scangolf.ops.gdn_reference import gated_delta_rule_sequential

CHUNK = 64


def _draw(shape: Shape, normal: Normal, device: torch.device) -> Tensors:
    size = shape.batch, shape.length, heads(shape)
    return {
        "q": F.normalize(normal(*size, shape.state), dim=-1),
        "k": F.normalize(normal(*size, shape.state), dim=-1),
        "v": normal(*size, HEAD_SIZE),
        "g": -F.softplus(normal(*size, dtype=torch.float32) - 3),
        "beta": normal(*size).sigmoid(),
    }


def _scan(inputs: Tensors, backend: str) -> Tensor:
    return gated_delta_rule(**inputs, chunk_size=CHUNK, backend=backend)  # type: ignore[call-overload]


def _loop(inputs: Tensors) -> Tensor:
    return gated_delta_rule_sequential(**inputs)  # type: ignore[arg-type, return-value]


def _backends(inputs: Tensors) -> list[tuple[str, str]]:
    q, v = inputs["q"], inputs["v"]
    resolved = choose_backend("auto", q, v)
    return able(KERNELS, resolved, v.is_cuda, lambda name: why_not(name, q, v))


def _flop(shape: Shape) -> int:
    """Of the chunked form: in a chunk, for every pair s <= t, the products of keys and of queries
    with keys, the triangular system solved by substitution, and what the scores weigh of its
    solution; of every step, what its key and its query read of the state, and what it writes.
    """
    count, state = heads(shape), shape.state
    per_pair = 2 * 2 * (state + HEAD_SIZE)
    per_step = 3 * 2 * HEAD_SIZE * state
    steps = pairs(shape.length, CHUNK) * per_pair + shape.length * per_step
    return shape.batch * count * steps


def _fla(inputs: Tensors, dy: Tensor) -> Contender:
    """The Triton kernels of flash-linear-attention."""
    function = peer_function("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", *inputs, "scale")

    def run(x: Tensors) -> Tensor:
        return function(**x, scale=1.0)[0]

    return Contender("fla", "Triton", "peer", run, inputs, dy)


GDN = Operator(
    name="gdn",
    about=f"heads of {HEAD_SIZE} values, states are their keys, chunks of {CHUNK}",
    shapes={
        "cuda": [Shape(64, 1024, 1024, 64), Shape(16, 4096, 1024, 64)],
        "cpu": [Shape(4, 256, 256, 64), Shape(16, 64, 256, 64)],
    },
    limits_16_bit=(5e-3, 1.5e-2),
    draw=_draw,
    like="v",
    scan=_scan,
    loop=_loop,
    backends=_backends,
    peer_name="fla",
    peer=_fla,
    flop=_flop,
)
