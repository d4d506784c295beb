"""The gated delta rule in plain torch operations, for any device: the backend "reference".

Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464), section 3.3; the recurrence stands
in ops/gdn_reference.py. A step adds one outer product k_t w_t^T to the faded state. With D_ts the
decay from step s to step t of a chunk, e_t that from before the chunk, and S the state before it,

    w_t = beta_t (v_t - e_t S^T k_t - sum_{s<t} D_ts (k_t . k_s) w_s)

so the w of a chunk solve one triangular system, the WY form of a product of Householder-like
matrices; outputs and the next state are products of matrices. Only the chunks go one by one. The
forward pass saves the state before every chunk; the backward pass computes all else again from it.

A decay is exp of a sum of g, which is at most zero: never of its negative, which overflows. These
sums begin anew for each s, so a strong decay costs the steps after it no precision, and a document
begins where g is -inf.

Shapes: B batch, L length, H heads, K key_dim, V value_dim, N chunks, T (and S) steps of a chunk.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.ops.reference import state_dtype


class _Chunk(NamedTuple):
    """What a chunk reads, and what its two passes share, in the dtype of the state."""

    q_BHTK: Tensor
    k_BHTK: Tensor
    v_BHTV: Tensor
    beta_BHT1: Tensor
    decay_BHTS: Tensor  # from step s to step t; 0 where s > t
    entry_BHT1: Tensor  # decay from before the chunk to step t
    exit_BHT1: Tensor  # decay from step t to the end of the chunk
    whole_BH11: Tensor  # decay from before the chunk to its end
    fades_BHTS: Tensor  # decay (k_t . k_s): the system where s < t, not read elsewhere
    scores_BHTS: Tensor  # decay (q_t . k_s)

    def errors(self, S_BHKV: Tensor) -> Tensor:
        """v less what the state before the chunk holds under k [B, H, T, V]."""
        return self.v_BHTV - self.entry_BHT1 * (self.k_BHTK @ S_BHKV)

    def writes(self, errors_BHTV: Tensor) -> Tensor:
        """w [B, H, T, V]."""
        return torch.linalg.solve_triangular(
            self.beta_BHT1 * self.fades_BHTS,
            self.beta_BHT1 * errors_BHTV,
            upper=False,
            unitriangular=True,
        )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """o [B, L, H, V] in v's dtype, the final state [B, H, K, V], the saved states [B, N, H, K, V].

    The states are float32 (float64 for float64 inputs).
    """
    dtype = state_dtype(v)
    g = _restarting(g.to(dtype), seq_idx)
    o_BLHV = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    saved_BNHKV = saved(q, k, v, chunk_size)
    S_BHKV = _state(initial_state, q, v)
    for n, t in _slices(q.shape[1], chunk_size):
        saved_BNHKV[:, n] = S_BHKV
        c = _chunk(q[:, t], k[:, t], v[:, t], g[:, t], beta[:, t])
        w_BHTV = c.writes(c.errors(S_BHKV))
        o_BHTV = c.entry_BHT1 * (c.q_BHTK @ S_BHKV) + c.scores_BHTS @ w_BHTV
        o_BLHV[:, t] = o_BHTV.transpose(1, 2)
        S_BHKV = c.whole_BH11 * S_BHKV + (c.exit_BHT1 * c.k_BHTK).mT @ w_BHTV
    return o_BLHV, S_BHKV, saved_BNHKV


def backward(
    grad_o: Tensor,
    grad_final: Tensor | None,
    saved_BNHKV: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta in their dtypes, and of the initial state in the state's."""
    dtype = saved_BNHKV.dtype
    g_in, g = g, _restarting(g.to(dtype), seq_idx)
    dq, dk, dv, dg, dbeta = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, g_in, beta)
    )
    dS_BHKV = _state(grad_final, q, v)
    for n, t in reversed(_slices(q.shape[1], chunk_size)):
        c = _chunk(q[:, t], k[:, t], v[:, t], g[:, t], beta[:, t])
        do_BHTV = grad_o[:, t].to(dtype).transpose(1, 2).contiguous()
        *grads, dS_BHKV = _chunk_backward(c, saved_BNHKV[:, n], do_BHTV, dS_BHKV)
        for whole, part in zip((dq, dk, dv, dg, dbeta), grads, strict=True):
            whole[:, t] = part.transpose(1, 2)
    return dq, dk, dv, dg, dbeta, dS_BHKV


def saved(q: Tensor, k: Tensor, v: Tensor, chunk_size: int) -> Tensor:
    """The states that `forward` saves for `backward`, without numbers: [B, N, H, K, V]."""
    batch, length, heads, key_dim = q.shape
    chunks = (length + chunk_size - 1) // chunk_size
    return v.new_empty(batch, chunks, heads, key_dim, v.shape[-1], dtype=state_dtype(v))


def _chunk_backward(
    c: _Chunk, S_BHKV: Tensor, do_BHTV: Tensor, dS_BHKV: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v [B, H, T, ...], of g, beta [B, H, T] and of the state before the chunk.

    S is the state before the chunk, dS the gradient of the state after it.
    """
    errors_BHTV = c.errors(S_BHKV)
    w_BHTV = c.writes(errors_BHTV)
    kept_BHTK = c.exit_BHT1 * c.k_BHTK
    dkept_BHTK = w_BHTV @ dS_BHKV.mT

    # through the triangular system: x is the gradient of its right side, beta errors
    dw_BHTV = c.scores_BHTS.mT @ do_BHTV + kept_BHTK @ dS_BHKV
    x_BHTV = torch.linalg.solve_triangular(
        (c.beta_BHT1 * c.fades_BHTS).mT, dw_BHTV, upper=True, unitriangular=True
    )
    dsystem_BHTS = (x_BHTV @ w_BHTV.mT).neg_().tril_(-1)
    dbeta_BHT = (x_BHTV * errors_BHTV).sum(-1) + (dsystem_BHTS * c.fades_BHTS).sum(-1)
    dv_BHTV = c.beta_BHT1 * x_BHTV

    dfades_BHTS = c.beta_BHT1 * dsystem_BHTS
    dscores_BHTS = (do_BHTV @ w_BHTV.mT).tril_()
    dkk_BHTS, dqk_BHTS = c.decay_BHTS * dfades_BHTS, c.decay_BHTS * dscores_BHTS

    # what reads the state before the chunk: q gives to o, k takes from v
    dread_BHTK = do_BHTV @ S_BHKV.mT
    dheld_BHTK = dv_BHTV @ S_BHKV.mT
    dq_BHTK = c.entry_BHT1 * dread_BHTK + dqk_BHTS @ c.k_BHTK
    dk_BHTK = (
        c.exit_BHT1 * dkept_BHTK
        - c.entry_BHT1 * dheld_BHTK
        + dqk_BHTS.mT @ c.q_BHTK
        + (dkk_BHTS + dkk_BHTS.mT) @ c.k_BHTK
    )
    dS0_BHKV = (
        c.whole_BH11 * dS_BHKV
        + (c.entry_BHT1 * c.q_BHTK).mT @ do_BHTV
        - (c.entry_BHT1 * c.k_BHTK).mT @ dv_BHTV
    )

    # g: gradients of the logarithms of all decays
    dlog_BHTS = dscores_BHTS * c.scores_BHTS + dfades_BHTS * c.fades_BHTS
    dlog_BHTS[..., -1, :] += (dkept_BHTK * kept_BHTK).sum(-1)
    dlog_entry_BHT1 = c.entry_BHT1 * (
        (dread_BHTK * c.q_BHTK).sum(-1, keepdim=True)
        - (dheld_BHTK * c.k_BHTK).sum(-1, keepdim=True)
    )
    dlog_entry_BHT1[..., -1:, :] += c.whole_BH11 * (dS_BHKV * S_BHKV).sum((-2, -1), keepdim=True)
    dg_BHT = _over_spans(dlog_BHTS, dlog_entry_BHT1)
    return dq_BHTK, dk_BHTK, dv_BHTV, dg_BHT, dbeta_BHT, dS0_BHKV


def _over_spans(dlog_BHTS: Tensor, dlog_entry_BHT1: Tensor) -> Tensor:
    """Gradient of g [B, H, T]: the sum over the decays that have it, those from before it on.

    No difference of sums: that of a g of which nothing is left, as between documents, is zero.
    """
    steps = dlog_BHTS.shape[-1]
    ends_TT = dlog_BHTS.new_ones(steps, steps).triu()  # 1 where a decay that ends there has g_t
    inner_BHT = (ends_TT @ dlog_BHTS).tril_(-1).sum(-1)
    return inner_BHT + (ends_TT @ dlog_entry_BHT1).squeeze(-1)


def _chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> _Chunk:
    """A chunk of [B, T, H, ...], g in the dtype of the state."""
    q_BHTK, k_BHTK, v_BHTV, g_BHT, beta_BHT = (
        x.to(g.dtype).transpose(1, 2).contiguous() for x in (q, k, v, g, beta)
    )
    steps = g_BHT.shape[-1]
    g_BHTS = g_BHT[..., None].expand(*g_BHT.shape, steps).tril(-1)
    decay_BHTS = g_BHTS.cumsum(-2).exp_().tril_()
    entry_BHT1 = g_BHT.cumsum(-1).exp_()[..., None]
    return _Chunk(
        q_BHTK,
        k_BHTK,
        v_BHTV,
        beta_BHT[..., None],
        decay_BHTS,
        entry_BHT1,
        decay_BHTS[..., -1, :, None],
        entry_BHT1[..., -1:, :],
        decay_BHTS * (k_BHTK @ k_BHTK.mT),
        decay_BHTS * (q_BHTK @ k_BHTK.mT),
    )


def _restarting(g_BLH: Tensor, seq_idx: Tensor | None) -> Tensor:
    """g, and -inf where a document begins."""
    if seq_idx is None:
        return g_BLH
    begins_BL = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=False)
    return g_BLH.masked_fill(begins_BL[..., None], -torch.inf)


def _state(S_BHKV: Tensor | None, q: Tensor, v: Tensor) -> Tensor:
    """A copy in the dtype of the state, zero if there is none."""
    batch, _, heads, key_dim = q.shape
    state = v.new_zeros(batch, heads, key_dim, v.shape[-1], dtype=state_dtype(v))
    return state if S_BHKV is None else state.copy_(S_BHKV)


def _slices(length: int, chunk_size: int) -> list[tuple[int, slice]]:
    starts = range(0, length, chunk_size)
    return [(n, slice(start, start + chunk_size)) for n, start in enumerate(starts)]
