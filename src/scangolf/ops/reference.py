"""The scans written to be read: the truth that every fast form is checked against.

The selective scan of Mamba (Gu & Dao 2023, arXiv:2312.00752), section 3 and algorithm 2. With
d = softplus(delta + bias):

    h_t = exp(d_t A) h_{t-1} + d_t B_t u_t        y_t = (sum_n C_t h_t + D u_t) silu(z_t)

The SSD scan of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), section 3, the same with one decay for
all P N states of a head. With d = softplus(dt + bias):

    h_t = exp(d_t A) h_{t-1} + d_t x_t B_t'       y_t = (h_t C_t + D x_t) silu(z_t)

Shapes: B batch, L length, D channels, H heads, P head size, N state, G groups of channels or heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def state_dtype(u: Tensor) -> torch.dtype:
    """The state is float32 whatever the inputs are, or float64 for float64 inputs."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def selective_scan_sequential(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence one step at a time, for reading and for checking; arguments as in ops.s6."""
    dtype = state_dtype(u)
    batch, length, channels = u.shape
    u_BLD, A_DN = u.to(dtype), A.to(dtype)
    d_BLD = delta.to(dtype)
    if delta_bias is not None:
        d_BLD = d_BLD + delta_bias.to(dtype)
    if delta_softplus:
        d_BLD = F.softplus(d_BLD)
    if B.dim() == 3:
        B, C = B.unsqueeze(2), C.unsqueeze(2)
    per_group = channels // B.shape[2]
    h_BDN = u_BLD.new_zeros(batch, channels, A.shape[1])
    if initial_state is not None:
        h_BDN = initial_state.to(dtype)
    y_LBD: list[Tensor] = []
    for t in range(length):
        if seq_idx is not None and t > 0:
            same_B = seq_idx[:, t] == seq_idx[:, t - 1]
            h_BDN = torch.where(same_B[:, None, None], h_BDN, 0.0)
        B_BDN = B[:, t].to(dtype).repeat_interleave(per_group, dim=1)
        C_BDN = C[:, t].to(dtype).repeat_interleave(per_group, dim=1)
        d_BD1, u_BD1 = d_BLD[:, t, :, None], u_BLD[:, t, :, None]
        h_BDN = torch.exp(d_BD1 * A_DN) * h_BDN + d_BD1 * B_BDN * u_BD1
        y_LBD.append((C_BDN * h_BDN).sum(-1))
    y_BLD = torch.stack(y_LBD, dim=1)
    if D is not None:
        y_BLD = y_BLD + D.to(dtype) * u_BLD
    if z is not None:
        y_BLD = y_BLD * F.silu(z.to(dtype))
    return (y_BLD.to(u.dtype), h_BDN) if return_final_state else y_BLD.to(u.dtype)


def ssd_scan_sequential(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence one step at a time, for reading and for checking; arguments as in ops.ssd."""
    dtype = state_dtype(x)
    batch, length, heads, head_dim = x.shape
    x_BLHP, A_H = x.to(dtype), A.to(dtype)
    d_BLH = dt.to(dtype)
    if dt_bias is not None:
        d_BLH = d_BLH + dt_bias.to(dtype)
    if dt_softplus:
        d_BLH = F.softplus(d_BLH)
    if B.dim() == 3:
        B, C = B.unsqueeze(2), C.unsqueeze(2)
    per_group = heads // B.shape[2]
    h_BHPN = x_BLHP.new_zeros(batch, heads, head_dim, B.shape[3])
    if initial_state is not None:
        h_BHPN = initial_state.to(dtype)
    y_LBHP: list[Tensor] = []
    for t in range(length):
        if seq_idx is not None and t > 0:
            same_B = seq_idx[:, t] == seq_idx[:, t - 1]
            h_BHPN = torch.where(same_B[:, None, None, None], h_BHPN, 0.0)
        B_BH1N = B[:, t].to(dtype).repeat_interleave(per_group, dim=1).unsqueeze(2)
        C_BH1N = C[:, t].to(dtype).repeat_interleave(per_group, dim=1).unsqueeze(2)
        d_BH11 = d_BLH[:, t, :, None, None]
        h_BHPN = torch.exp(d_BH11 * A_H[:, None, None]) * h_BHPN
        h_BHPN = h_BHPN + d_BH11 * x_BLHP[:, t].unsqueeze(3) * B_BH1N
        y_LBHP.append((C_BH1N * h_BHPN).sum(-1))
    y_BLHP = torch.stack(y_LBHP, dim=1)
    if D is not None:
        y_BLHP = y_BLHP + D.to(dtype)[:, None] * x_BLHP
    if z is not None:
        y_BLHP = y_BLHP * F.silu(z.to(dtype))
    return (y_BLHP.to(x.dtype), h_BHPN) if return_final_state else y_BLHP.to(x.dtype)
