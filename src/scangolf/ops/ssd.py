"""The SSD scan of Mamba-2 as a torch operator: registration and gradients.

Dao & Gu 2024 (arXiv:2405.21060), sections 3 and 6; the formulas stand in ops/reference.py.

The backend is chosen in ops/ssd_backends.py, inside the operators: nothing is asked of a device
while torch.compile traces Python.

Whatever the inputs' dtypes, and under autocast too, the state and everything that touches it is
float32 (float64 for float64 inputs). The operator takes any mix of the smaller dtypes; y comes in
x's dtype, every gradient in the dtype of its input.

Shapes: B batch, L length, H heads, P head size, N state, G groups of heads.
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, library

from scangolf.ops.checks import check_backend, check_ssd
from scangolf.ops.reference import state_dtype
from scangolf.ops.ssd_backends import Backend, implementation, saved


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    return_final_state: Literal[False] = False,
    seq_idx: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor: ...


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    *,
    return_final_state: Literal[True],
    seq_idx: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]: ...


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    chunk_size: int = 64,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    seq_idx: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's scan: h_t = exp(d_t A) h_{t-1} + d_t x_t B_t', y_t = h_t C_t + D x_t.

    Each head has one decay for its whole state, a matrix [head_dim, state]: so a chunk of the
    sequence is a product of matrices, like attention with a mask of decays.

    Args:
        x: input [batch, length, heads, head_dim], any floating dtype.
        dt: step size [batch, length, heads]; d = dt, plus dt_bias, through softplus if asked.
        A: [heads], negative for a state that decays.
        B: input weights [batch, length, state], or [batch, length, groups, state]: group i serves
            the i-th run of heads / groups heads.
        C: output weights, shape of B.
        D: skip weight [heads]: adds D x to y.
        z: gate, shape of x: multiplies y with silu(z), after D.
        dt_bias: [heads], added to dt before the softplus.
        dt_softplus: apply softplus to dt (+ dt_bias).
        chunk_size: steps of a chunk. It changes the speed, the memory (the backward pass keeps one
            state a chunk), and the rounding, nothing else. Any length will do.
        initial_state: state before the first step [batch, heads, head_dim, state]; zero if None.
        return_final_state: also return the state after the last step,
            [batch, heads, head_dim, state], float32 (float64 for float64 inputs). Gradients flow
            through it.
        seq_idx: integers [batch, length], the document of each position: the state restarts at
            zero wherever the number changes from one position to the next. Position 0 continues
            initial_state.
        backend: "auto" is the first of these that takes the inputs.
            "cuda": kernels for NVIDIA GPUs from Ampere on, compiled in a second at their first
            call. x of 16 bits, in whose dtype all products are; states of 16 to 256, powers of 2.
            "triton": kernels for any GPU that Triton supports, compiled at their first call; not
            for float64.
            "reference": plain torch operations, any device, any floating dtype.

    Returns:
        y [batch, length, heads, head_dim] in x's dtype, or (y, final state).

    Raises:
        ValueError: a shape, dtype or device that does not fit, a chunk_size below 1, no such
            backend, or one named that cannot take the inputs: the message says why.
    """
    check_backend(backend, Backend)
    check_ssd(x, dt, A, B, C, D, z, dt_bias, chunk_size, initial_state, seq_idx)
    if B.dim() == 3:
        B, C = B.unsqueeze(2), C.unsqueeze(2)
    y, final_state, _ = _scan(
        x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, initial_state, seq_idx, backend
    )
    if z is not None:
        exact = torch.promote_types(y.dtype, torch.float32)
        # One rounding; a compiler fuses it with what follows.
        y = (y.to(exact) * F.silu(z.to(exact))).to(y.dtype)
    return (y, final_state) if return_final_state else y


# --- registration -------------------------------------------------------------------------------


@library.custom_op("scangolf::ssd_scan", mutates_args=())
def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and what the backend saves for the backward pass."""
    with torch.autocast(x.device.type, enabled=False):
        return implementation(backend, x, A, B).forward(
            x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, initial_state, seq_idx
        )


@_scan.register_fake
def _(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, initial_state, seq_idx, backend):
    batch, _, heads, head_dim = x.shape
    return (
        x.new_empty(x.shape),
        x.new_empty(batch, heads, head_dim, B.shape[3], dtype=state_dtype(x)),
        saved(backend, x, A, B, chunk_size),
    )


@library.custom_op("scangolf::ssd_scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,
    seq_idx: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, dt_bias, initial_state; empty where absent."""
    with torch.autocast(x.device.type, enabled=False):
        return implementation(backend, x, A, B).backward(
            grad_y, grad_final, states, x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, seq_idx
        )


@_scan_backward.register_fake
def _(
    grad_y, grad_final, states, x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, seq_idx,
    backend,
):  # fmt: skip
    def like(v: Tensor | None) -> Tensor:
        return x.new_empty(0) if v is None else v.new_empty(v.shape)

    batch, _, heads, head_dim = x.shape
    state = x.new_empty(batch, heads, head_dim, B.shape[3], dtype=state_dtype(x))
    return *(like(v) for v in (x, dt, A, B, C, D, dt_bias)), state


def _save_for_backward(ctx, inputs, output):
    x, dt, A, B, C, D, dt_bias, softplus, chunk_size, initial_state, seq_idx, backend = inputs
    ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, seq_idx, output[2])
    ctx.softplus, ctx.chunk_size, ctx.backend = softplus, chunk_size, backend
    ctx.state_in = None if initial_state is None else initial_state.dtype
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_y, grad_final, _):
    x, dt, A, B, C, D, dt_bias, seq_idx, states = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    grads = _scan_backward(
        grad_y, grad_final, states, x, dt, A, B, C, D, dt_bias,
        ctx.softplus, ctx.chunk_size, seq_idx, ctx.backend,
    )  # fmt: skip
    dx, ddt, dA, dB, dC, dD, dbias, d_initial = grads
    d_initial = None if ctx.state_in is None else d_initial.to(ctx.state_in)
    optional = (None if v is None else g for v, g in ((D, dD), (dt_bias, dbias)))
    return dx, ddt, dA, dB, dC, *optional, None, None, d_initial, None, None


_scan.register_autograd(_gradients, setup_context=_save_for_backward)
