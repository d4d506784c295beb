"""The SSD scan of Mamba-2 in the benchmark: heads of 64, one group of B and C, no gate."""

from __future__ import annotations

import torch
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
from scangolf.ops import ssd_scan
from scangolf.ops.reference import ssd_scan_sequential
from scangolf.ops.ssd_backends import KERNELS, choose_backend, why_not

CHUNK = 64
CHUNK_OF_PEER = 256  # what its own layer takes


def _draw(shape: Shape, normal: Normal, device: torch.device) -> Tensors:
    batch, length, count = shape.batch, shape.length, heads(shape)
    return {
        "x": normal(batch, length, count, HEAD_SIZE),
        "dt": normal(batch, length, count) - 3,
        "A": -torch.arange(1.0, count + 1, device=device),
        "B": normal(batch, length, shape.state),
        "C": normal(batch, length, shape.state),
        "D": normal(count, dtype=torch.float32),
        "dt_bias": normal(count, dtype=torch.float32),
    }


def _scan(inputs: Tensors, backend: str) -> Tensor:
    return ssd_scan(**inputs, dt_softplus=True, chunk_size=CHUNK, backend=backend)  # type: ignore[call-overload]


def _loop(inputs: Tensors) -> Tensor:
    return ssd_scan_sequential(**inputs, dt_softplus=True)  # type: ignore[arg-type, return-value]


def _backends(inputs: Tensors) -> list[tuple[str, str]]:
    x, A, B = inputs["x"], inputs["A"], inputs["B"].unsqueeze(2)
    resolved = choose_backend("auto", x, A, B)
    return able(KERNELS, resolved, x.is_cuda, lambda name: why_not(name, x, A, B))


def _flop(shape: Shape) -> int:
    """Of the chunked form: in a chunk, the scores C_t B_s once for all heads, and what they weigh
    of x_s, for every pair s <= t; of every step, what it writes into the state and reads from it.
    """
    count, state = heads(shape), shape.state
    per_pair = 2 * state + 2 * count * HEAD_SIZE
    per_step = 2 * 2 * count * HEAD_SIZE * state
    return shape.batch * (pairs(shape.length, CHUNK) * per_pair + shape.length * per_step)


def _mamba_ssm(inputs: Tensors, dy: Tensor) -> Contender:
    """The Triton kernels of state-spaces/mamba."""
    function = peer_function(
        "mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined",
        *inputs, "chunk_size", "dt_softplus",
    )  # fmt: skip

    def run(x: Tensors) -> Tensor:
        groups = {k: x[k].unsqueeze(2) for k in "BC"}
        return function(**x | groups, chunk_size=CHUNK_OF_PEER, dt_softplus=True)

    return Contender("mamba_ssm", f"Triton, chunks of {CHUNK_OF_PEER}", "peer", run, inputs, dy)


SSD = Operator(
    name="ssd",
    about=f"heads of {HEAD_SIZE}, one group, chunks of {CHUNK}, D, dt_bias and softplus fused",
    shapes={
        "cuda": [Shape(64, 1024, 1024, 64), Shape(16, 4096, 1024, 64)],
        "cpu": [Shape(4, 256, 256, 64), Shape(16, 64, 256, 64)],
    },
    limits_16_bit=(5e-3, 1.5e-2),
    draw=_draw,
    like="x",
    shared=("B", "C"),
    scan=_scan,
    loop=_loop,
    backends=_backends,
    peer_name="mamba_ssm",
    peer=_mamba_ssm,
    flop=_flop,
)
