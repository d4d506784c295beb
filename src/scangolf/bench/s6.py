"""The selective scan of Mamba in the benchmark: states of 16, everything fused."""

from __future__ import annotations

import torch
from torch import Tensor

from scangolf.bench.floor import Shape
from scangolf.bench.operators import Contender, Normal, Operator, Tensors, able, peer_function
from scangolf.ops import selective_scan
from scangolf.ops.reference import selective_scan_sequential
from scangolf.ops.s6_backends import KERNELS, choose_backend, why_not


def _draw(shape: Shape, normal: Normal, device: torch.device) -> Tensors:
    batch, length, channels, state = shape.batch, shape.length, shape.channels, shape.state
    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels) - 3,
        "A": -torch.arange(1.0, state + 1, device=device).repeat(channels, 1),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(channels, dtype=torch.float32),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels, dtype=torch.float32),
    }


def _scan(inputs: Tensors, backend: str) -> Tensor:
    return selective_scan(**inputs, delta_softplus=True, backend=backend)  # type: ignore[call-overload]


def _loop(inputs: Tensors) -> Tensor:
    return selective_scan_sequential(**inputs, delta_softplus=True)  # type: ignore[arg-type, return-value]


def _backends(inputs: Tensors) -> list[tuple[str, str]]:
    u, A, B = inputs["u"], inputs["A"], inputs["B"].unsqueeze(2)
    resolved = choose_backend("auto", u, A, B)
    return able(KERNELS, resolved, u.is_cuda, lambda name: why_not(name, u, A, B))


def _mamba_ssm(inputs: Tensors, dy: Tensor) -> Contender:
    """The CUDA kernels of state-spaces/mamba."""
    function = peer_function(
        "mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", *inputs, "delta_softplus"
    )

    def run(x: Tensors) -> Tensor:
        return function(**x, delta_softplus=True)

    x = {k: _time_last(v).requires_grad_() for k, v in inputs.items()}
    return Contender("mamba_ssm", "CUDA", "peer", run, x, _time_last(dy), time_last=True)


def _time_last(x: Tensor) -> Tensor:
    return (x.detach().mT if x.dim() == 3 else x.detach()).clone(
        memory_format=torch.contiguous_format
    )


S6 = Operator(
    name="s6",
    about="z, D, delta_bias and softplus fused",
    shapes={
        "cuda": [Shape(64, 1024, 1024, 16), Shape(16, 4096, 1024, 16), Shape(4, 16384, 1024, 16)],
        "cpu": [Shape(8, 1024, 256, 16), Shape(16, 256, 256, 8)],
    },
    limits_16_bit=(4e-3, 1e-2),
    draw=_draw,
    like="u",
    shared=("B", "C"),
    scan=_scan,
    loop=_loop,
    backends=_backends,
    peer_name="mamba_ssm",
    peer=_mamba_ssm,
    exponentials=lambda shape: shape.updates,  # to take one again is cheaper than to store it
)
