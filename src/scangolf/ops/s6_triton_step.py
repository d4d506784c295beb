"""Triton kernel of one decoding step of the selective scan: all of it in one launch.

One program is BLOCK_D channels of one sequence and goes through their states BLOCK_N at a time.

Shapes: B batch, D channels, N state, G groups of channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scangolf.ops.s6_triton_lanes import LOG2_E, sigmoid, softplus

TILE = 512  # states of a program: four for each of its threads
WIDEST = 64  # states of a channel at a time


@triton.jit(do_not_specialize=("blocks",))
def step_kernel(
    state, u, delta, A, B, C, skip, z, bias, y, advanced,
    channels, blocks, per_group,
    u_batch, delta_batch, z_batch, B_batch, B_group, C_batch, C_group,
    N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """y and the new state; the state is read once and written once."""
    program = tl.program_id(0)
    sequence = (program // blocks).to(tl.int64)
    channel = program % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = channel < channels
    state += sequence * channels * N
    advanced += sequence * channels * N
    B += sequence * B_batch
    C += sequence * C_batch

    u_d = tl.load(u + sequence * u_batch + channel, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(delta + sequence * delta_batch + channel, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        d += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if SOFTPLUS:
        d, _ = softplus(d, False)
    x = d * u_d
    y_d = tl.zeros([BLOCK_D], tl.float32)
    group = channel // per_group
    for first in range(0, N, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        valid = inside[:, None] & (n < N)[None, :]
        at = channel[:, None] * N + n[None, :]
        A_dn = tl.load(A + at, mask=valid, other=0.0).to(tl.float32)
        B_dn = tl.load(B + group[:, None] * B_group + n[None, :], mask=valid, other=0.0)
        C_dn = tl.load(C + group[:, None] * C_group + n[None, :], mask=valid, other=0.0)
        h = tl.load(state + at, mask=valid, other=0.0).to(tl.float32)
        h = tl.exp2(d[:, None] * A_dn * LOG2_E) * h + x[:, None] * B_dn.to(tl.float32)
        tl.store(advanced + at, h, mask=valid)
        y_d += tl.sum(C_dn.to(tl.float32) * h, axis=1)
    if HAS_SKIP:
        y_d += tl.load(skip + channel, mask=inside, other=0.0).to(tl.float32) * u_d
    if HAS_Z:
        z_d = tl.load(z + sequence * z_batch + channel, mask=inside, other=0.0).to(tl.float32)
        y_d *= z_d * sigmoid(z_d, False)
    tl.store(y + sequence * channels + channel, y_d.to(y.dtype.element_ty), mask=inside)


def step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """y [B, D] in u's dtype and the new state [B, D, N] in float32; B, C are [B, G, N]."""
    (batch, channels), n, groups = u.shape, A.shape[1], B.shape[1]
    y = torch.empty((batch, channels), dtype=u.dtype, device=u.device)
    advanced = torch.empty((batch, channels, n), dtype=torch.float32, device=u.device)
    if y.numel() == 0:
        return y, advanced
    u, delta, B, C = (_dense_last(x) for x in (u, delta, B, C))
    gate = u if z is None else _dense_last(z)
    block_n = min(triton.next_power_of_2(max(n, 1)), WIDEST)
    block_d = min(TILE // block_n, triton.next_power_of_2(channels))
    blocks = triton.cdiv(channels, block_d)
    with torch.cuda.device_of(u):
        step_kernel[(batch * blocks,)](
            state.contiguous(), u, delta, A.contiguous(), B, C,
            u if D is None else D.contiguous(),
            gate,
            u if delta_bias is None else delta_bias.contiguous(),
            y, advanced,
            channels, blocks, channels // groups,
            u.stride(0), delta.stride(0), gate.stride(0),
            B.stride(0), B.stride(1), C.stride(0), C.stride(1),
            N=n, BLOCK_D=block_d, BLOCK_N=block_n, HAS_SKIP=D is not None, HAS_Z=z is not None,
            HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus,
            num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip
    return y, advanced


def _dense_last(x: Tensor) -> Tensor:
    """Any stride but that of the last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()
