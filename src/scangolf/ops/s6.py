"""The selective scan of Mamba as a torch operator: registration and gradients.

Gu & Dao 2023 (arXiv:2312.00752), section 3 and algorithm 2; the formulas stand in ops/reference.py.

The backend is chosen in ops/s6_backends.py, inside the operators: nothing is asked of a device
while torch.compile traces Python.

Whatever the inputs' dtypes, and under autocast too, the state and everything that touches it is
float32 (float64 for float64 inputs). The operator takes any mix of the smaller dtypes; y comes in
u's dtype, every gradient in the dtype of its input.

Shapes: B batch, L length, D channels, N state, G groups of channels.
"""

from typing import Literal, overload

import torch
from torch import Tensor, library

from scangolf.ops.checks import check_backend, check_scan
from scangolf.ops.reference import state_dtype
from scangolf.ops.s6_backends import Backend, implementation, saved_shape


@overload
def selective_scan(
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
    return_final_state: Literal[False] = False,
    seq_idx: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor: ...


@overload
def selective_scan(
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
    *,
    return_final_state: Literal[True],
    seq_idx: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
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
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's selective scan: h_t = exp(d_t A) h_{t-1} + d_t B_t u_t, y_t = C_t h_t + D u_t.

    Args:
        u: input [batch, length, channels], any floating dtype.
        delta: step size, shape of u; d = delta, plus delta_bias, through softplus if asked.
        A: [channels, state], negative for a state that decays.
        B: input weights [batch, length, state], or [batch, length, groups, state]: group i serves
            the i-th run of channels / groups channels.
        C: output weights, shape of B.
        D: skip weight [channels]: adds D u to y.
        z: gate, shape of u: multiplies y with silu(z), after D.
        delta_bias: [channels], added to delta before the softplus.
        delta_softplus: apply softplus to delta (+ delta_bias).
        initial_state: state before the first step [batch, channels, state]; zero if None.
        return_final_state: also return the state after the last step, [batch, channels, state],
            float32 (float64 for float64 inputs). Gradients flow through it.
        seq_idx: integers [batch, length], the document of each position: the state restarts at
            zero wherever the number changes from one position to the next. Position 0 continues
            initial_state.
        backend: "auto" takes the first of these that can take the inputs. A state of any size will
            do for each; float64 is the reference's alone.
            "cuda": kernels for NVIDIA GPUs of compute capability 8.0 and later, compiled at their
            first call by NVRTC, which comes with torch. A multiple of 8 channels a group.
            "triton": kernels for any GPU that Triton supports, AMD's too, compiled at their first
            call in half a minute. Any number of channels.
            "reference": plain torch operations, any device, any floating dtype.

    Returns:
        y [batch, length, channels] in u's dtype, or (y, final state).

    Raises:
        ValueError: a shape, dtype or device that does not fit, no such backend, or one named that
            cannot take the inputs: the message says why.
    """
    check_backend(backend, Backend)
    check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
    if B.dim() == 3:
        B, C = B.unsqueeze(2), C.unsqueeze(2)
    y, final_state, _ = _scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, backend
    )
    return (y, final_state) if return_final_state else y


# --- registration -------------------------------------------------------------------------------


@library.custom_op("scangolf::selective_scan", mutates_args=())
def _scan(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and what the backend saves for the backward pass."""
    with torch.autocast(u.device.type, enabled=False):
        return implementation(backend, u, A, B).forward(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx
        )


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, backend):
    batch, length, channels = u.shape
    dtype = state_dtype(u)
    return (
        u.new_empty(batch, length, channels),
        u.new_empty(batch, channels, A.shape[1], dtype=dtype),
        u.new_empty(saved_shape(backend, u, A, B), dtype=dtype),
    )


@library.custom_op("scangolf::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    saved: Tensor,
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; empty where absent."""
    with torch.autocast(u.device.type, enabled=False):
        return implementation(backend, u, A, B).backward(
            grad_y, grad_final, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx
        )


@_scan_backward.register_fake
def _(
    grad_y, grad_final, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx, backend
):  # fmt: skip
    def like(x: Tensor | None) -> Tensor:
        return u.new_empty(0) if x is None else x.new_empty(x.shape)

    state = saved.new_empty(u.shape[0], *A.shape)
    return *(like(x) for x in (u, delta, A, B, C, D, z, delta_bias)), state


def _save_for_backward(ctx, inputs, output):
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, backend = inputs
    ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, seq_idx, output[2])
    ctx.delta_softplus, ctx.backend = delta_softplus, backend
    ctx.state_in = None if initial_state is None else initial_state.dtype
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_y, grad_final, _):
    u, delta, A, B, C, D, z, delta_bias, seq_idx, saved = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    grads = _scan_backward(
        grad_y, grad_final, saved, u, delta, A, B, C, D, z, delta_bias,
        ctx.delta_softplus, seq_idx, ctx.backend,
    )  # fmt: skip
    du, d_delta, dA, dB, dC, dD, dz, d_bias, d_initial = grads
    d_initial = None if ctx.state_in is None else d_initial.to(ctx.state_in)
    optional = (None if x is None else g for x, g in ((D, dD), (z, dz), (delta_bias, d_bias)))
    return du, d_delta, dA, dB, dC, *optional, None, d_initial, None, None


_scan.register_autograd(_gradients, setup_context=_save_for_backward)
