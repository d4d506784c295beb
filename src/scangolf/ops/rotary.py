"""Queries and keys made ready for attention, as one torch operator: norm, rotation, gain.

    n = x / sqrt(mean(x^2) + eps)        y = gain (n rotated)

over a head's numbers. A rotation turns the pairs (i, i + P / 2) of a head by an angle that grows
with the position (Su et al. 2021, arXiv:2104.09864, section 3.4; halves instead of neighbours).
Whatever the dtype of x, everything between x and y is float32 (float64 for float64 inputs); the
backward pass computes n again from x. The kernels for a GPU stand in ops/rotary_triton.py.

Shapes: B batch, L length, H heads, P head size, W = P / 2 pairs of a head.
"""

import torch
from torch import Tensor, library

from scangolf.ops.gated_norm import epsilon
from scangolf.ops.kernels import kernels_take
from scangolf.ops.reference import state_dtype


def norm_rotate(
    x_BLHP: Tensor, cos_LW: Tensor, sin_LW: Tensor, gain_H: Tensor | None = None
) -> Tensor:
    """Heads divided by their root mean square, rotated, and multiplied by their gain.

    Args:
        x_BLHP: queries or keys [batch, length, heads, head_dim], any floating dtype, head_dim even.
        cos_LW: cosine of the angle of each position and pair [length, head_dim / 2]; no gradient.
        sin_LW: the sine, like the cosine.
        gain_H: [heads]; 1 if None.

    Returns:
        y [batch, length, heads, head_dim] in x's dtype, contiguous. What is added to the mean
        square is the machine epsilon of the dtype of the computation, as in torch's rms_norm.

    Raises:
        ValueError: a shape that does not fit.
    """
    _, length, heads, head_dim = x_BLHP.shape
    if head_dim % 2:
        raise ValueError(f"x has heads of {head_dim}: expected an even number, to rotate pairs")
    table = (length, head_dim // 2)
    for name, value, shape in (
        ("cos", cos_LW, table),
        ("sin", sin_LW, table),
        ("gain", gain_H, (heads,)),
    ):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}: expected {shape}")
    return _rotate(x_BLHP, cos_LW, sin_LW, gain_H)


@library.custom_op("scangolf::norm_rotate", mutates_args=())
def _rotate(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> Tensor:
    if kernels_take(x) and x.numel() > 0:
        from scangolf.ops.rotary_triton import forward

        return forward(x, cos, sin, gain, epsilon(x))
    n, _ = _normalised(x)
    y = _turn(n, cos, sin)
    if gain is not None:
        y *= gain.to(y.dtype)[:, None]
    return y.to(x.dtype)


@_rotate.register_fake
def _(x, cos, sin, gain):
    return x.new_empty(x.shape)


@library.custom_op("scangolf::norm_rotate_backward", mutates_args=())
def _rotate_backward(
    grad_y: Tensor, x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the gain, which is empty where there is none."""
    if kernels_take(x) and x.numel() > 0:
        from scangolf.ops.rotary_triton import backward

        return backward(grad_y, x, cos, sin, gain, epsilon(x))
    n, r = _normalised(x)
    dy = _turn(grad_y.to(n.dtype), cos, -sin)  # back by the same angles
    d_gain = x.new_empty(0)
    if gain is not None:
        d_gain = (dy * n).sum((0, 1, 3)).to(gain.dtype)
        dy = dy * gain.to(dy.dtype)[:, None]
    dx = r * (dy - n * (dy * n).mean(-1, keepdim=True))
    return dx.to(x.dtype), d_gain


@_rotate_backward.register_fake
def _(grad_y, x, cos, sin, gain):
    return x.new_empty(x.shape), x.new_empty(0) if gain is None else gain.new_empty(gain.shape)


def _normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """n, contiguous whatever x is, and what x was multiplied with."""
    x = x.to(state_dtype(x)).contiguous()
    r = (x.square().mean(-1, keepdim=True) + epsilon(x)).rsqrt()
    return x * r, r


def _turn(x_BLHP: Tensor, cos_LW: Tensor, sin_LW: Tensor) -> Tensor:
    a, b = x_BLHP.chunk(2, dim=-1)
    cos, sin = (v.to(x_BLHP.dtype)[:, None] for v in (cos_LW, sin_LW))
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_y):
    dx, d_gain = _rotate_backward(grad_y, *ctx.saved_tensors)
    return dx, None, None, None if ctx.saved_tensors[3] is None else d_gain


_rotate.register_autograd(_gradients, setup_context=_save_for_backward)
