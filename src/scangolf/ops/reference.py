"""The selective scan in plain torch operations: the truth, and the path of devices without a kernel.

Mamba (Gu & Dao 2023, arXiv:2312.00752), section 3 and algorithm 2. With d = softplus(delta + bias):

    h_t = exp(d_t A) h_{t-1} + d_t B_t u_t        y_t = (sum_n C_t h_t + D u_t) silu(z_t)

Shapes: B batch, L length, D channels, N state, G groups, P channels of a group (D = G P),
T time steps of one tile, K tiles.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16  # steps computed at once; the backward pass starts again from a state saved every TILE


def state_dtype(u: Tensor) -> torch.dtype:
    """The state is float32 whatever the inputs are, or float64 for float64 inputs."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def restarts(seq_idx: Tensor) -> Tensor:
    """True [B, L] where a position belongs to another document than the one before it."""
    return F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))


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


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, L, D] in u's dtype, the final state [B, D, N], and the state before every tile [B, K, D, N]."""
    dtype, (batch, length, channels), (groups, n) = state_dtype(u), u.shape, B.shape[2:]
    p = channels // groups
    A2_GNP = _group_A(A, groups, dtype) * math.log2(math.e)
    h_BGNP = _entry_state(initial_state, batch, groups, n, p, dtype, u.device)
    keep_BL = None if seq_idx is None else (~restarts(seq_idx)).to(dtype)
    borders = u.new_empty(batch, tiles(length), groups, p, n, dtype=dtype)
    y_BLD = torch.empty_like(u, memory_format=torch.contiguous_format)
    for k, s in enumerate(_slices(length)):
        borders[:, k] = h_BGNP.transpose(-1, -2)
        u_BTD = u[:, s].to(dtype)
        d_BTD, _ = _step_sizes(delta[:, s].to(dtype), delta_bias, delta_softplus)
        B_BTGN, C_BTGN = B[:, s].to(dtype), C[:, s].to(dtype)
        _, h_BTGNP = _states(
            d_BTD, u_BTD, A2_GNP, B_BTGN, h_BGNP, None if keep_BL is None else keep_BL[:, s]
        )
        y_BTD = _over_state(C_BTGN, h_BTGNP)
        if D is not None:
            y_BTD.addcmul_(u_BTD, D.to(dtype))
        if z is not None:
            y_BTD.mul_(F.silu(z[:, s].to(dtype)))
        y_BLD[:, s] = y_BTD
        h_BGNP = h_BTGNP[:, -1]
    final = h_BGNP.transpose(-1, -2).reshape(batch, channels, n).clone()
    return y_BLD, final, borders.view(batch, -1, channels, n)


def backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    borders: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    seq_idx: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state: the adjoint recurrence

        g_t = C_t dy_t + exp(d_{t+1} A) g_{t+1}

    from the last tile to the first. Each tile computes its states again from the saved border.
    Gradients of absent D, z, delta_bias are empty.
    """
    dtype, (batch, length, channels), (groups, n) = state_dtype(u), u.shape, B.shape[2:]
    p = channels // groups
    A_GNP = _group_A(A, groups, dtype)
    A2_GNP = A_GNP * math.log2(math.e)
    keep_BL = None if seq_idx is None else (~restarts(seq_idx)).to(dtype)
    borders = borders.view(batch, -1, groups, p, n)

    dU, dDelta, dB, dC = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C)
    )
    dz = u.new_empty(0) if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    dA_GNP = torch.zeros_like(A_GNP)
    dD = A_GNP.new_zeros(0 if D is None else channels)
    dbias = A_GNP.new_zeros(0 if delta_bias is None else channels)
    carry_BGNP = _entry_state(grad_final, batch, groups, n, p, dtype, u.device)

    for k, s in reversed(list(enumerate(_slices(length)))):
        u_BTD, gy_BTD = u[:, s].to(dtype), grad_y[:, s].to(dtype)
        d_BTD, slope_BTD = _step_sizes(delta[:, s].to(dtype), delta_bias, delta_softplus)
        B_BTGN, C_BTGN = B[:, s].to(dtype), C[:, s].to(dtype)
        h0_BGNP = borders[:, k].transpose(-1, -2)
        a_BTGNP, h_BTGNP = _states(
            d_BTD, u_BTD, A2_GNP, B_BTGN, h0_BGNP, None if keep_BL is None else keep_BL[:, s]
        )

        if z is not None:
            z_BTD = z[:, s].to(dtype)
            y_BTD = _over_state(C_BTGN, h_BTGNP)
            if D is not None:
                y_BTD.addcmul_(u_BTD, D.to(dtype))
            gate_BTD = torch.sigmoid(z_BTD)
            dz[:, s] = gy_BTD * y_BTD * gate_BTD * (1 + z_BTD * (1 - gate_BTD))
            gy_BTD = gy_BTD * z_BTD * gate_BTD

        dC[:, s] = _over_channels(gy_BTD, h_BTGNP)
        g_BTGNP = C_BTGN[..., None] * gy_BTD.view(batch, -1, groups, 1, p)
        g_BTGNP[:, -1] += carry_BGNP
        for t in range(g_BTGNP.shape[1] - 2, -1, -1):
            g_BTGNP[:, t].addcmul_(a_BTGNP[:, t + 1], g_BTGNP[:, t + 1])

        du_BTD = d_BTD * u_BTD
        dB[:, s] = _over_channels(du_BTD, g_BTGNP)
        gx_BTD = _over_state(B_BTGN, g_BTGNP)
        a_BTGNP *= g_BTGNP
        carry_BGNP = a_BTGNP[:, 0].clone()
        a_BTGNP[:, 1:] *= h_BTGNP[:, :-1]
        a_BTGNP[:, 0] *= h0_BGNP
        gd_BTD = (a_BTGNP * A_GNP).sum(-2).view_as(u_BTD)
        dA_GNP += (a_BTGNP * d_BTD.view(batch, -1, groups, 1, p)).sum((0, 1))

        gd_BTD = gd_BTD + gx_BTD * u_BTD
        if slope_BTD is not None:
            gd_BTD *= slope_BTD
        gu_BTD = gx_BTD * d_BTD
        if D is not None:
            gu_BTD.addcmul_(gy_BTD, D.to(dtype))
            dD += (gy_BTD * u_BTD).sum((0, 1))
        if delta_bias is not None:
            dbias += gd_BTD.sum((0, 1))
        dU[:, s], dDelta[:, s] = gu_BTD, gd_BTD

    dA = dA_GNP.transpose(-1, -2).reshape(channels, n).to(A.dtype)
    dinitial = carry_BGNP.transpose(-1, -2).reshape(batch, channels, n).contiguous()
    dD = dD if D is None else dD.to(D.dtype)
    dbias = dbias if delta_bias is None else dbias.to(delta_bias.dtype)
    return dU, dDelta, dA, dB, dC, dD, dz, dbias, dinitial


def tiles(length: int) -> int:
    """Number of tiles, and of saved states, of a sequence."""
    return (length + TILE - 1) // TILE


def _slices(length: int) -> list[slice]:
    return [slice(t, min(t + TILE, length)) for t in range(0, length, TILE)]


def _group_A(A_DN: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    channels, n = A_DN.shape
    return A_DN.to(dtype).view(groups, channels // groups, n).transpose(1, 2).contiguous()


def _entry_state(h_BDN: Tensor | None, batch, groups, n, p, dtype, device) -> Tensor:
    if h_BDN is None:
        return torch.zeros(batch, groups, n, p, dtype=dtype, device=device)
    return h_BDN.to(dtype).reshape(batch, groups, p, n).transpose(2, 3)


def _step_sizes(
    delta_BTD: Tensor, bias_D: Tensor | None, softplus: bool
) -> tuple[Tensor, Tensor | None]:
    """d and its slope against delta (None where it is 1)."""
    if bias_D is not None:
        delta_BTD = delta_BTD + bias_D.to(delta_BTD.dtype)
    return (F.softplus(delta_BTD), torch.sigmoid(delta_BTD)) if softplus else (delta_BTD, None)


def _states(d_BTD, u_BTD, A2_GNP, B_BTGN, h_BGNP, keep_BT) -> tuple[Tensor, Tensor]:
    """Decays and states [B, T, G, N, P] of a tile that is entered with h_BGNP."""
    groups, _, p = A2_GNP.shape
    split = (*d_BTD.shape[:2], groups, 1, p)
    a_BTGNP = (d_BTD.reshape(split) * A2_GNP).exp2_()
    if keep_BT is not None:
        a_BTGNP *= keep_BT[:, :, None, None, None]
    h_BTGNP = B_BTGN[..., None] * (d_BTD * u_BTD).view(split)
    for t in range(d_BTD.shape[1]):
        h_BGNP = h_BTGNP[:, t].addcmul_(a_BTGNP[:, t], h_BGNP)
    return a_BTGNP, h_BTGNP


def _over_state(C_BTGN: Tensor, h_BTGNP: Tensor) -> Tensor:
    """sum_n C h, as [B, T, D]."""
    b, t, g, n, p = h_BTGNP.shape
    return torch.bmm(C_BTGN.reshape(-1, 1, n), h_BTGNP.view(-1, n, p)).view(b, t, g * p)


def _over_channels(x_BTD: Tensor, h_BTGNP: Tensor) -> Tensor:
    """sum_p x h, as [B, T, G, N]. (The row times matrix order: the other one is ten times slower.)"""
    b, t, g, n, p = h_BTGNP.shape
    return torch.bmm(x_BTD.reshape(-1, 1, p), h_BTGNP.view(-1, n, p).transpose(1, 2)).view(
        b, t, g, n
    )
