"""The gated delta rule written to be read: the truth that every fast form is checked against.

Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464), section 3.1. The state is a memory
of values under keys (the paper's, transposed). A step lets it fade, then moves what it holds under
k_t towards v_t:

    M_t = exp(g_t) S_{t-1}        S_t = M_t + beta_t k_t (v_t - M_t^T k_t)^T        o_t = S_t^T q_t

Shapes: B batch, L length, H heads, K key_dim, V value_dim.
"""

import torch
from torch import Tensor

from scangolf.ops.reference import state_dtype


def gated_delta_rule_sequential(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence one step at a time, for reading and for checking; arguments as in ops.gdn."""
    dtype = state_dtype(v)
    batch, length, heads, key_dim = q.shape
    S_BHKV = v.new_zeros(batch, heads, key_dim, v.shape[-1], dtype=dtype)
    if initial_state is not None:
        S_BHKV = initial_state.to(dtype)
    o_LBHV: list[Tensor] = []
    for t in range(length):
        if seq_idx is not None and t > 0:
            same_B = seq_idx[:, t] == seq_idx[:, t - 1]
            S_BHKV = torch.where(same_B[:, None, None, None], S_BHKV, 0.0)
        q_BHK1, k_BHK1 = q[:, t, :, :, None].to(dtype), k[:, t, :, :, None].to(dtype)
        v_BH1V, beta_BH11 = v[:, t, :, None].to(dtype), beta[:, t, :, None, None].to(dtype)
        S_BHKV = S_BHKV * g[:, t, :, None, None].to(dtype).exp()
        held_BH1V = (S_BHKV * k_BHK1).sum(-2, keepdim=True)
        S_BHKV = S_BHKV + beta_BH11 * k_BHK1 * (v_BH1V - held_BH1V)
        o_LBHV.append((S_BHKV * q_BHK1).sum(-2))
    o_BLHV = torch.stack(o_LBHV, dim=1).to(v.dtype)
    return (o_BLHV, S_BHKV) if return_final_state else o_BLHV
