"""Causal depthwise convolution followed by SiLU, as one torch operator.

The short convolution of Mamba (Gu & Dao 2023, arXiv:2312.00752, section 3.4), with p before SiLU:

    p_t = bias + sum_k weight[k] x_{t-K+1+k}        y_t = silu(p_t)

Whatever the inputs' dtypes the sum is float32 (float64 for float64 inputs); the backward pass
computes p again from x. The kernels for a GPU stand in ops/conv_triton.py.

Shapes: B batch, L length, D channels, K taps, P = L + K - 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, library

from scangolf.ops.checks import check_conv
from scangolf.ops.kernels import kernels_take
from scangolf.ops.reference import state_dtype

UNROLLED_TAPS = range(2, 9)  # the kernels unroll their loops over taps


def causal_conv_silu(
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial: Tensor | None = None,
) -> Tensor:
    """y_t = silu(bias + sum_k weight[k] x_{t-K+1+k}), for every channel.

    Args:
        x_BLD: input [batch, length, channels], any floating dtype; rows may lie apart, as in a
            slice of a projection.
        weight_DK: [channels, taps]; the last tap is that of the present input.
        bias_D: [channels]; zero if None.
        seq_idx: integers [batch, length], the document of each position: a new one begins wherever
            the number changes, and inputs of another count as zero. Position 0 continues initial.
        initial: the inputs before the first, [batch, taps - 1, channels]; zeros if None.

    Returns:
        y [batch, length, channels] in x's dtype, contiguous. Gradients flow to x, weight, bias and
        initial, each in the dtype of its tensor.

    Raises:
        ValueError: a shape, dtype or device that does not fit.
    """
    check_conv(x_BLD, weight_DK, bias_D, seq_idx, initial)
    return _conv(x_BLD, weight_DK, bias_D, seq_idx, initial)


# --- plain torch operations ---------------------------------------------------------------------


def _plain_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial: Tensor | None
) -> Tensor:
    taps_KBLD = _taps(x, weight, seq_idx, initial)
    return F.silu(_before_silu(taps_KBLD, weight, bias)).to(x.dtype)


def _plain_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    length, taps = x.shape[1], weight.shape[1]
    taps_KBLD = _taps(x, weight, seq_idx, initial)
    p_BLD = _before_silu(taps_KBLD, weight, bias)
    dp_BLD = torch.ops.aten.silu_backward(grad_y.to(p_BLD.dtype), p_BLD)
    dx_BPD = dp_BLD.new_zeros(x.shape[0], length + taps - 1, x.shape[2])
    for k, same_BL1 in enumerate(_same_document(seq_idx, taps)):
        share = dp_BLD if same_BL1 is None else torch.where(same_BL1, dp_BLD, 0.0)
        dx_BPD[:, k : k + length].addcmul_(share, weight[:, k].to(dp_BLD.dtype))
    dw_KD = torch.stack([(dp_BLD * x_BLD).sum((0, 1)) for x_BLD in taps_KBLD])
    dx_BLD = _copy(dx_BPD[:, taps - 1 :], x)
    dw_DK = dw_KD.mT.to(weight.dtype).contiguous()
    d_bias, d_initial = x.new_empty(0), x.new_empty(0)
    if bias is not None:
        d_bias = dp_BLD.sum((0, 1)).to(bias.dtype)
    if initial is not None:
        d_initial = _copy(dx_BPD[:, : taps - 1], initial)
    return dx_BLD, dw_DK, d_bias, d_initial


def _copy(part: Tensor, like: Tensor) -> Tensor:
    """Results of an operator must not share memory."""
    return torch.empty(part.shape, dtype=like.dtype, device=like.device).copy_(part)


def _taps(
    x: Tensor, weight: Tensor, seq_idx: Tensor | None, initial: Tensor | None
) -> list[Tensor]:
    """What each tap sees, K times [B, L, D]: x, later and later."""
    length, taps, dtype = x.shape[1], weight.shape[1], state_dtype(x)
    if initial is None:
        padded_BPD = F.pad(x.to(dtype), (0, 0, taps - 1, 0))
    else:
        padded_BPD = torch.cat([initial.to(dtype), x.to(dtype)], dim=1)
    shifted = [padded_BPD[:, k : k + length] for k in range(taps)]
    same = _same_document(seq_idx, taps)
    return [
        x_BLD if same_BL1 is None else torch.where(same_BL1, x_BLD, 0.0)
        for x_BLD, same_BL1 in zip(shifted, same, strict=True)
    ]


def _same_document(seq_idx: Tensor | None, taps: int) -> list[Tensor | None]:
    """For each tap whether its input is of the document of the position, [B, L, 1]."""
    if seq_idx is None:
        return [None] * taps
    begins_BL = torch.zeros_like(seq_idx)
    begins_BL[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    document_BL = begins_BL.cumsum(1)
    padded_BP = F.pad(document_BL, (taps - 1, 0))
    length = seq_idx.shape[1]
    return [(padded_BP[:, k : k + length] == document_BL)[..., None] for k in range(taps)]


def _before_silu(taps_KBLD: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = taps_KBLD[0].dtype
    weight = weight.to(dtype)
    p_BLD = taps_KBLD[0] * weight[:, 0]
    if bias is not None:
        p_BLD += bias.to(dtype)
    for k, x_BLD in enumerate(taps_KBLD[1:], 1):
        p_BLD.addcmul_(x_BLD, weight[:, k])
    return p_BLD


# --- registration -------------------------------------------------------------------------------


@library.custom_op("scangolf::causal_conv_silu", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, initial: Tensor | None
) -> Tensor:
    if _kernels_take(x, weight):
        from scangolf.ops.conv_triton import forward

        return forward(x, weight, bias, seq_idx, initial)
    return _plain_forward(x, weight, bias, seq_idx, initial)


@_conv.register_fake
def _(x, weight, bias, seq_idx, initial):
    return x.new_empty(x.shape)


@library.custom_op("scangolf::causal_conv_silu_backward", mutates_args=())
def _conv_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, initial; the last two empty where absent."""
    if _kernels_take(x, weight):
        from scangolf.ops.conv_triton import backward

        return backward(grad_y, x, weight, bias, seq_idx, initial)
    return _plain_backward(grad_y, x, weight, bias, seq_idx, initial)


@_conv_backward.register_fake
def _(grad_y, x, weight, bias, seq_idx, initial):
    dx, dw = x.new_empty(x.shape), weight.new_empty(weight.shape)
    return dx, dw, *(x.new_empty(0) if v is None else v.new_empty(v.shape) for v in (bias, initial))


def _kernels_take(x: Tensor, weight: Tensor) -> bool:
    return kernels_take(x) and weight.shape[1] in UNROLLED_TAPS and x.numel() > 0


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_y):
    _, _, bias, _, initial = ctx.saved_tensors
    dx, dw, d_bias, d_initial = _conv_backward(grad_y, *ctx.saved_tensors)
    return dx, dw, None if bias is None else d_bias, None, None if initial is None else d_initial


_conv.register_autograd(_gradients, setup_context=_save_for_backward)
