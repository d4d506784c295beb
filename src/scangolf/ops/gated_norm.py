"""RMS normalisation of a gated input, as one torch operator.

The norm before the output projection of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060, section 7):

    p = x silu(z)        y = p / sqrt(mean(p^2) + eps)

over the last dimension. Whatever the inputs' dtype everything between them and y is float32
(float64 for float64 inputs); the backward pass reads x and z and computes p again. The kernels for
a GPU stand in ops/gated_norm_triton.py.

Shapes: ... any leading dimensions, E channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, library

from scangolf.ops.kernels import kernels_take
from scangolf.ops.reference import state_dtype


def gated_rms_norm(x: Tensor, z: Tensor) -> Tensor:
    """x silu(z), divided by its root mean square over the last dimension.

    Args:
        x: [..., channels], any floating dtype.
        z: the gate, x's shape and dtype.

    Returns:
        y in x's shape and dtype, contiguous. What is added to the mean square is the machine
        epsilon of the dtype of the computation, as in torch's rms_norm.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}: expected a floating dtype")
    if (z.shape, z.dtype, z.device) != (x.shape, x.dtype, x.device):
        raise ValueError(
            f"z is {z.dtype} of shape {tuple(z.shape)} on {z.device}: expected {x.dtype} of shape "
            f"{tuple(x.shape)} on {x.device}, as x is"
        )
    return _norm(x, z)


def epsilon(x: Tensor) -> float:
    return torch.finfo(state_dtype(x)).eps


@library.custom_op("scangolf::gated_rms_norm", mutates_args=())
def _norm(x: Tensor, z: Tensor) -> Tensor:
    if kernels_take(x) and x.numel() > 0:
        from scangolf.ops.gated_norm_triton import forward

        return forward(x, z, epsilon(x))
    _, _, p, r = _gated(x, z)
    return (p * r).to(x.dtype)


@_norm.register_fake
def _(x, z):
    return x.new_empty(x.shape)


@library.custom_op("scangolf::gated_rms_norm_backward", mutates_args=())
def _norm_backward(grad_y: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and z, contiguous."""
    if kernels_take(x) and x.numel() > 0:
        from scangolf.ops.gated_norm_triton import backward

        return backward(grad_y, x, z, epsilon(x))
    wide_x, wide_z, p, r = _gated(x, z)
    dy = grad_y.to(p.dtype)
    dp = r * (dy - p * r.square() * (dy * p).mean(-1, keepdim=True))
    sigma = wide_z.sigmoid()
    dx = dp * wide_z * sigma
    dz = dp * wide_x * sigma * (1 + wide_z * (1 - sigma))
    return dx.to(x.dtype), dz.to(z.dtype)


@_norm_backward.register_fake
def _(grad_y, x, z):
    return x.new_empty(x.shape), z.new_empty(z.shape)


def _gated(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and z in the dtype of the computation, contiguous; p, and what it is multiplied with."""
    wide_x, wide_z = (v.to(state_dtype(x)).contiguous() for v in (x, z))
    p = wide_x * F.silu(wide_z)
    return wide_x, wide_z, p, (p.square().mean(-1, keepdim=True) + epsilon(x)).rsqrt()


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_y):
    return _norm_backward(grad_y, *ctx.saved_tensors)


_norm.register_autograd(_gradients, setup_context=_save_for_backward)
