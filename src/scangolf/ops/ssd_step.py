"""One decoding step of the SSD scan; the scan itself is ops/ssd.py.

Shapes: B batch, H heads, P head size, N state, G groups of heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.ops.checks import check_ssd_step
from scangolf.ops.reference import state_dtype


def ssd_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of `ssd_scan`, for decoding, in plain torch operations; gradients flow through it.

    Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), section 3.

    Args:
        state: [batch, heads, head_dim, state], as the scan returns it; it is not modified.
        x, z: [batch, heads, head_dim].
        dt: [batch, heads].
        B, C: [batch, state] or [batch, groups, state].
        A, D, dt_bias, dt_softplus: as in `ssd_scan`.

    Returns:
        y [batch, heads, head_dim] in x's dtype, and the new state in the dtype of the scan's state.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    check_ssd_step(state, x, dt, A, B, C, D, z, dt_bias)
    if B.dim() == 2:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    dtype, per_group = state_dtype(x), x.shape[1] // B.shape[1]
    x_BHP, d_BH = x.to(dtype), dt.to(dtype)
    if dt_bias is not None:
        d_BH = d_BH + dt_bias.to(dtype)
    if dt_softplus:
        d_BH = F.softplus(d_BH)
    B_BH1N, C_BH1N = (v.to(dtype).repeat_interleave(per_group, dim=1).unsqueeze(2) for v in (B, C))
    h_BHPN = torch.exp(d_BH * A.to(dtype))[:, :, None, None] * state.to(dtype)
    h_BHPN = h_BHPN + (d_BH.unsqueeze(2) * x_BHP).unsqueeze(3) * B_BH1N
    y_BHP = (h_BHPN * C_BH1N).sum(-1)
    if D is not None:
        y_BHP = y_BHP + D.to(dtype).unsqueeze(1) * x_BHP
    if z is not None:
        y_BHP = y_BHP * F.silu(z.to(dtype))
    return y_BHP.to(x.dtype), h_BHPN
