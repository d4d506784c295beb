"""Triton kernels of the gated RMS norm, forward and backward: a program has a few whole rows.

Each pass reads its inputs once and writes its outputs once. With p = x silu(z), r the reciprocal of
its root mean square, and the mean over a row,

    dp = r (dy - p r^2 mean(dy p))      dx = dp silu(z)      dz = dp x silu'(z)

Shapes: R rows, E channels, padded to a power of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scangolf.ops.s6_triton_lanes import sigmoid

NUMBERS = 2048  # of a program: 16 for each thread
WARPS = 4


@triton.jit(do_not_specialize=("rows",))
def gated_norm_kernel(
    x, z, y, rows, channels, eps, R: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    at, inside = place(rows, channels, R, E)
    x_RE = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    z_RE = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
    p_RE = x_RE * z_RE * sigmoid(z_RE, False)
    r_R1 = tl.rsqrt(tl.sum(p_RE * p_RE, axis=1) / channels + eps)[:, None]
    tl.store(y + at, (p_RE * r_R1).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("rows",))
def gated_norm_backward_kernel(
    grad_y, x, z, grad_x, grad_z, rows, channels, eps, R: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    at, inside = place(rows, channels, R, E)
    x_RE = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    z_RE = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
    dy_RE = tl.load(grad_y + at, mask=inside, other=0.0).to(tl.float32)
    sigma_RE = sigmoid(z_RE, False)
    silu_RE = z_RE * sigma_RE
    p_RE = x_RE * silu_RE
    r_R1 = tl.rsqrt(tl.sum(p_RE * p_RE, axis=1) / channels + eps)[:, None]
    mean_R1 = (tl.sum(dy_RE * p_RE, axis=1) / channels)[:, None]
    dp_RE = r_R1 * (dy_RE - p_RE * (r_R1 * r_R1 * mean_R1))
    dz_RE = dp_RE * x_RE * (sigma_RE + silu_RE * (1.0 - sigma_RE))
    tl.store(grad_x + at, (dp_RE * silu_RE).to(grad_x.dtype.element_ty), mask=inside)
    tl.store(grad_z + at, dz_RE.to(grad_z.dtype.element_ty), mask=inside)


@triton.jit
def place(rows, channels, R: tl.constexpr, E: tl.constexpr):
    """Where a program's numbers are, and which of them are there."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    channel = tl.arange(0, E)
    at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    return at, (row < rows)[:, None] & (channel < channels)[None, :]


def forward(x: Tensor, z: Tensor, eps: float) -> Tensor:
    """y, in the dtype and shape of x; no dimension is empty."""
    x, z = x.contiguous(), z.contiguous()
    y = torch.empty_like(x)
    _launch(gated_norm_kernel, x, z, y, eps=eps)
    return y


def backward(grad_y: Tensor, x: Tensor, z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of x and z."""
    grad_y, x, z = (v.contiguous() for v in (grad_y, x, z))
    grad_x, grad_z = torch.empty_like(x), torch.empty_like(z)
    _launch(gated_norm_backward_kernel, grad_y, x, z, grad_x, grad_z, eps=eps)
    return grad_x, grad_z


def _launch(kernel: Any, *tensors: Tensor, eps: float) -> None:
    channels = tensors[0].shape[-1]
    rows, width = tensors[0].numel() // channels, triton.next_power_of_2(channels)
    at_once = max(1, NUMBERS // width)
    with torch.cuda.device_of(tensors[0]):
        kernel[(triton.cdiv(rows, at_once),)](
            *tensors, rows, channels, eps, R=at_once, E=width, num_warps=WARPS
        )
