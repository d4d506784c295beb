"""One decoding step of the selective scan as a torch operator; the scan itself is ops/s6.py.

Shapes: B batch, D channels, N state, G groups of channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, library

from scangolf.ops.checks import check_step
from scangolf.ops.kernels import kernels_take
from scangolf.ops.reference import state_dtype


def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of `selective_scan`, for decoding.

    A CUDA tensor takes one kernel, unless it is float64 or gradients are wanted; everything else
    takes plain torch operations, through which gradients flow.

    Args:
        state: [batch, channels, state], as the scan returns it; it is not modified.
        u, delta, z: [batch, channels].
        B, C: [batch, state] or [batch, groups, state].
        A, D, delta_bias, delta_softplus: as in `selective_scan`.

    Returns:
        y [batch, channels] in u's dtype, and the new state in the dtype of the scan's state.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    check_step(state, u, delta, A, B, C, D, z, delta_bias)
    if B.dim() == 2:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    inputs = (state, u, delta, A, B, C, D, z, delta_bias)
    if not kernels_take(u) or _wants_gradients(inputs):
        return _plain_step(*inputs, delta_softplus)
    return _step(*inputs, delta_softplus)


def _wants_gradients(inputs: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _plain_step(
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
    """B and C are [B, G, N]."""
    dtype, per_group = state_dtype(u), u.shape[1] // B.shape[1]
    u_BD, d_BD = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        d_BD = d_BD + delta_bias.to(dtype)
    if delta_softplus:
        d_BD = F.softplus(d_BD)
    B_BDN, C_BDN = (x.to(dtype).repeat_interleave(per_group, dim=1) for x in (B, C))
    h_BDN = torch.exp(d_BD.unsqueeze(-1) * A.to(dtype)) * state.to(dtype)
    h_BDN = h_BDN + (d_BD * u_BD).unsqueeze(-1) * B_BDN
    y_BD = (C_BDN * h_BDN).sum(-1)
    if D is not None:
        y_BD = y_BD + D.to(dtype) * u_BD
    if z is not None:
        y_BD = y_BD * F.silu(z.to(dtype))
    return y_BD.to(u.dtype), h_BDN


# --- registration -------------------------------------------------------------------------------


@library.custom_op("scangolf::selective_state_update", mutates_args=())
def _step(
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
    """The new output and state, without gradients."""
    return _plain_step(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


@_step.register_kernel("cuda")
def _(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    from scangolf.ops.s6_triton_step import step

    return step(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


@_step.register_fake
def _(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    return u.new_empty(u.shape), u.new_empty(state.shape, dtype=state_dtype(u))
