"""The gated delta rule as a torch operator: registration and gradients.

Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464), section 3; the recurrence stands
in ops/gdn_reference.py, its chunked form in ops/gdn_chunked.py.

The backend is chosen in ops/gdn_backends.py, inside the operators: nothing is asked of a device
while torch.compile traces Python.

Whatever the inputs' dtypes, and under autocast too, the state, the decays and everything that
touches them are float32 (float64 for float64 inputs). The operator takes any mix of the smaller
dtypes; o comes in v's dtype, every gradient in the dtype of its input.

Shapes: B batch, L length, H heads, K key_dim, V value_dim.
"""

from typing import Literal, overload

import torch
from torch import Tensor, library

from scangolf.ops.checks import check_backend, check_delta_rule
from scangolf.ops.gdn_backends import Backend, implementation, saved
from scangolf.ops.reference import state_dtype


@overload
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    return_final_state: Literal[False] = False,
    seq_idx: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor: ...


@overload
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    *,
    return_final_state: Literal[True],
    seq_idx: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]: ...


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Gated DeltaNet's memory: S_t = M_t + beta_t k_t (v_t - M_t^T k_t)^T, M_t = exp(g_t) S_{t-1}.

    The output is o_t = S_t^T q_t. Nothing is scaled or normalised here: that is the caller's.

    Args:
        q: queries [batch, length, heads, key_dim], any floating dtype.
        k: keys, shape of q. Expected of norm 1 at most: with longer ones a step can overshoot, and
            the state grows without bound.
        v: values [batch, length, heads, value_dim].
        g: logarithm of the decay [batch, length, heads], at most 0; float32 is advised.
        beta: how much of the value under the key is replaced [batch, length, heads], in [0, 1]; up
            to 2, where what a step leaves of it changes its sign, works as well.
        chunk_size: steps that are computed at once. The result does not depend on it.
        initial_state: state before the first step [batch, heads, key_dim, value_dim]; zero if None.
        return_final_state: also return the state after the last step, [batch, heads, key_dim,
            value_dim], float32 (float64 for float64 inputs). Gradients flow through it.
        seq_idx: integers [batch, length], the document of each position: the state restarts at
            zero wherever the number changes from one position to the next. Position 0 continues
            initial_state.
        backend: "auto" is the first of these that takes the inputs.
            "triton": kernels for any GPU that Triton supports, compiled at their first call;
            not for float64, nor for key_dim and value_dim above 128. They save more for the
            backward pass: of each chunk and head a matrix of chunk_size^2 and the values written,
            too, in the dtype of the inputs.
            "reference": plain torch operations, any device, any floating dtype.

    Returns:
        o [batch, length, heads, value_dim] in v's dtype, or (o, final state).

    Raises:
        ValueError: a shape, dtype or device that does not fit, no step in a chunk, no such
            backend, or one named that cannot take the inputs: the message says why.
    """
    check_backend(backend, Backend)
    check_delta_rule(q, k, v, g, beta, chunk_size, initial_state, seq_idx)
    o, final_state, _ = _rule(q, k, v, g, beta, chunk_size, initial_state, seq_idx, backend)
    return (o, final_state) if return_final_state else o


# --- registration -------------------------------------------------------------------------------


@library.custom_op("scangolf::gated_delta_rule", mutates_args=())
def _rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """o, the final state, and what the backend saves for the backward pass."""
    with torch.autocast(v.device.type, enabled=False):
        return implementation(backend, q, v).forward(
            q, k, v, g, beta, chunk_size, initial_state, seq_idx
        )


@_rule.register_fake
def _(q, k, v, g, beta, chunk_size, initial_state, seq_idx, backend):
    batch, _, heads, key_dim = q.shape
    return (
        v.new_empty(v.shape),
        v.new_empty(batch, heads, key_dim, v.shape[-1], dtype=state_dtype(v)),
        saved(backend, q, k, v, chunk_size),
    )


@library.custom_op("scangolf::gated_delta_rule_backward", mutates_args=())
def _rule_backward(
    grad_o: Tensor,
    grad_final: Tensor | None,
    of_forward: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int,
    seq_idx: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta, initial_state."""
    with torch.autocast(v.device.type, enabled=False):
        return implementation(backend, q, v).backward(
            grad_o, grad_final, of_forward, q, k, v, g, beta, chunk_size, seq_idx
        )


@_rule_backward.register_fake
def _(grad_o, grad_final, of_forward, q, k, v, g, beta, chunk_size, seq_idx, backend):
    batch, _, heads, key_dim = q.shape
    state = v.new_empty(batch, heads, key_dim, v.shape[-1], dtype=state_dtype(v))
    return *(x.new_empty(x.shape) for x in (q, k, v, g, beta)), state


def _save_for_backward(ctx, inputs, output):
    q, k, v, g, beta, chunk_size, initial_state, seq_idx, backend = inputs
    ctx.save_for_backward(q, k, v, g, beta, seq_idx, output[2])
    ctx.chunk_size, ctx.backend = chunk_size, backend
    ctx.state_in = None if initial_state is None else initial_state.dtype
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_o, grad_final, _):
    q, k, v, g, beta, seq_idx, of_forward = ctx.saved_tensors
    if grad_o is None:
        grad_o = torch.zeros_like(v)
    *grads, d_initial = _rule_backward(
        grad_o, grad_final, of_forward, q, k, v, g, beta, ctx.chunk_size, seq_idx, ctx.backend
    )
    d_initial = None if ctx.state_in is None else d_initial.to(ctx.state_in)
    return *grads, None, d_initial, None, None


_rule.register_autograd(_gradients, setup_context=_save_for_backward)
