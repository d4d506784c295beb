"""One decoding step of the gated delta rule; the rule over a sequence is ops/gdn.py.

Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464), section 3.1.

Shapes: B batch, H heads, K key_dim, V value_dim.
"""

from torch import Tensor

from scangolf.ops.checks import check_delta_step
from scangolf.ops.reference import state_dtype


def gated_delta_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of `gated_delta_rule`, for decoding: plain torch operations, gradients flow.

    Args:
        state: [batch, heads, key_dim, value_dim], as the rule returns it; it is not modified.
        q, k: [batch, heads, key_dim].
        v: [batch, heads, value_dim].
        g, beta: [batch, heads].

    Returns:
        o [batch, heads, value_dim] in v's dtype, and the new state, float32 (float64 for float64
        inputs).

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    check_delta_step(state, q, k, v, g, beta)
    S_BHKV, q, k, v_BHV, g, beta = (x.to(state_dtype(v)) for x in (state, q, k, v, g, beta))
    q_BHK1, k_BHK1, v_BH1V = q.unsqueeze(-1), k.unsqueeze(-1), v_BHV.unsqueeze(-2)
    S_BHKV = S_BHKV * g.exp()[..., None, None]
    # sums of products, not matmul: autocast would take that to a smaller dtype
    held_BH1V = (S_BHKV * k_BHK1).sum(-2, keepdim=True)
    S_BHKV = S_BHKV + beta[..., None, None] * k_BHK1 * (v_BH1V - held_BH1V)
    return (S_BHKV * q_BHK1).sum(-2).to(v.dtype), S_BHKV
