"""Triton kernels of the causal depthwise convolution followed by SiLU, forward and backward.

    p_t = bias + sum_s w_s x_{t-s}        y_t = silu(p_t)        s = 0 .. K - 1 steps back

where w_s is weight[:, K - 1 - s] and inputs of another document count as zero.

A program walks through a chunk of rows, one at a time, with the last K - 1 inputs in registers, and
backward with the unfinished gradients of these: each row is loaded once, p and its gradient are
computed once a row. Each chunk leaves its share of the parameters' gradients, and torch adds these
up: the same inputs give the same bits.

Shapes: B batch, L length, D channels, K taps.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scangolf.ops.s6_triton_lanes import load_rows, sigmoid

CHANNELS, WARPS = 128, 2  # of a program: two channels a thread
AHEAD = 6  # rows that are loaded before they are used
LONG_CHUNK, SHORT_CHUNK = 128, 32
ENOUGH_PROGRAMS = 2048
SIZES = ("length", "chunks", "chunk_length", "blocks")


@triton.jit
def place(length, chunks, chunk_length, channels, blocks, C: tl.constexpr):
    """A program's sequence, channels, which of these are there, and its rows, to the one that is
    not of its chunk any more."""
    program = tl.program_id(0)
    channel = program % blocks * C + tl.arange(0, C)
    start = program // blocks % chunks * chunk_length
    sequence = (program // blocks // chunks).to(tl.int64)
    return sequence, channel, channel < channels, start, tl.minimum(start + chunk_length, length)


@triton.jit
def load_parameters(
    weight, bias, channel, inside, channels,
    K: tl.constexpr, C: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The weights of inputs 0, 1, .. K - 1 rows back, and the bias."""
    w = ()
    for s in tl.static_range(K):
        w = w + (tl.load(weight + (K - 1 - s) * channels + channel, mask=inside, other=0.0),)
    bias_c = tl.zeros([C], tl.float32)
    if HAS_BIAS:
        bias_c += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    return w, bias_c


@triton.jit
def aged(age, t, seq_idx, length):
    """The age of row t, from that of the row before."""
    last = tl.minimum(t, length - 1)
    changes = tl.load(seq_idx + last) != tl.load(seq_idx + tl.maximum(last - 1, 0))
    return tl.where(changes, 0, age + 1)


@triton.jit
def load_past(
    x, x_row, seq_idx, initial, channel, inside, channels, start, length,
    K: tl.constexpr, HAS_SEQ: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """The K - 1 inputs before row `start`, to which x points, the newest first, and the `age` of
    the newest: how many rows back its document goes, as far as these rows tell."""
    past, age = (), start * 0
    for i in tl.static_range(K - 1):
        t = start + i - (K - 1)
        there = tl.where(inside, t, -1) >= 0
        x_t = tl.load(x + (i - (K - 1)) * x_row + channel, mask=there, other=0.0).to(tl.float32)
        if HAS_INITIAL:
            before = initial + (t + K - 1) * channels + channel
            x_t += tl.load(before, mask=tl.where(inside, t, 0) < 0, other=0.0).to(tl.float32)
        if HAS_SEQ:
            age = aged(age, tl.maximum(t, 0), seq_idx, length)
        past = (x_t,) + past
    return past, age


@triton.jit(do_not_specialize=SIZES)
def conv_forward_kernel(
    x, weight, bias, seq_idx, initial, y,
    length, chunks, chunk_length, channels, blocks, x_batch, x_row,
    K: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """y of a chunk."""
    sequence, channel, inside, start, end = place(length, chunks, chunk_length, channels, blocks, C)
    limit = tl.where(inside, end, 0)  # channels that are not there have no rows
    x += sequence * x_batch + start.to(tl.int64) * x_row
    y += (sequence * length + start) * channels
    seq_idx += sequence * length
    initial += sequence * (K - 1) * channels
    w, bias_c = load_parameters(weight, bias, channel, inside, channels, K, C, HAS_BIAS)
    past, age = load_past(
        x, x_row, seq_idx, initial, channel, inside, channels, start, length, K, HAS_SEQ,
        HAS_INITIAL,
    )  # fmt: skip
    x_next = load_rows(x, x_row, channel, start, limit, T)
    for first in range(start, end, T):
        x_rows = x_next
        x += T * x_row
        x_next = load_rows(x, x_row, channel, first + T, limit, T)
        for i in tl.static_range(T):
            if HAS_SEQ:
                age = aged(age, first + i, seq_idx, length)
            taps = (x_rows[i].to(tl.float32),) + past
            p = bias_c
            for s in tl.static_range(K):
                p += w[s] * (tl.where(age >= s, taps[s], 0.0) if HAS_SEQ and s > 0 else taps[s])
            past = taps[: K - 1]
            to = y + (first + i - start) * channels + channel
            y_t = p * sigmoid(p, False)
            tl.store(to, y_t.to(y.dtype.element_ty), mask=first + i < limit)


@triton.jit(do_not_specialize=SIZES)
def conv_backward_kernel(
    grad_y, x, weight, bias, seq_idx, initial, grad_x, grad_initial, grad_parameters,
    length, chunks, chunk_length, channels, blocks, x_batch, x_row, dy_batch, dy_row,
    K: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Gradients of a chunk's inputs, and its share of those of weight (rows 0 .. K - 1) and bias.

    The row at t completes the gradient of the input at t - K + 1, so the walk goes K - 1 rows
    beyond the chunk; these count for grad_x only. The first chunk also completes the gradients of
    the inputs before the sequence.
    """
    sequence, channel, inside, start, end = place(length, chunks, chunk_length, channels, blocks, C)
    # the first row that is not read, that is not of this chunk, and that is not before the
    # sequence; channels that are not there have no rows
    limit = tl.where(inside, tl.minimum(end + K - 1, length), 0)
    chunk_end = tl.where(inside, end, 0)
    origin = tl.where(inside, 0, -K)

    x += sequence * x_batch + start.to(tl.int64) * x_row
    grad_y += sequence * dy_batch + start.to(tl.int64) * dy_row
    grad_x += (sequence * length + start) * channels
    seq_idx += sequence * length
    initial += sequence * (K - 1) * channels
    grad_initial += sequence * (K - 1) * channels
    grad_parameters += (sequence * chunks + start // chunk_length) * (K + 1) * channels

    w, bias_c = load_parameters(weight, bias, channel, inside, channels, K, C, HAS_BIAS)
    past, age = load_past(
        x, x_row, seq_idx, initial, channel, inside, channels, start, length, K, HAS_SEQ,
        HAS_INITIAL,
    )  # fmt: skip
    unfinished = ()  # what is known of the gradients of the past
    for _ in tl.static_range(K - 1):
        unfinished = unfinished + (tl.zeros([C], tl.float32),)
    dw = ()
    for _ in tl.static_range(K):
        dw = dw + (tl.zeros([C], tl.float32),)
    dbias = tl.zeros([C], tl.float32)

    x_next = load_rows(x, x_row, channel, start, limit, T)
    dy_next = load_rows(grad_y, dy_row, channel, start, limit, T)
    for first in range(start, end + K - 1, T):
        x_rows, dy_rows = x_next, dy_next
        x += T * x_row
        grad_y += T * dy_row
        x_next = load_rows(x, x_row, channel, first + T, limit, T)
        dy_next = load_rows(grad_y, dy_row, channel, first + T, limit, T)
        for i in tl.static_range(T):
            t = first + i
            if HAS_SEQ:
                age = aged(age, t, seq_idx, length)
            taps = (x_rows[i].to(tl.float32),) + past
            p = bias_c
            seen = ()
            for s in tl.static_range(K):
                x_s = tl.where(age >= s, taps[s], 0.0) if HAS_SEQ and s > 0 else taps[s]
                seen = seen + (x_s,)
                p += w[s] * x_s
            sigma = sigmoid(p, False)
            # 0 beyond the sequence, where dy is
            dp = dy_rows[i].to(tl.float32) * sigma * (1.0 + p * (1.0 - sigma))
            dp_here = tl.where(t < end, dp, 0.0)
            dbias += dp_here
            grown, summed = (), ()
            for s in tl.static_range(K):
                summed = summed + (dw[s] + dp_here * seen[s],)
                share = w[s] * dp
                if s > 0:
                    share = tl.where(age >= s, share, 0.0) if HAS_SEQ else share
                    share += unfinished[s - 1]
                grown = grown + (share,)
            dw = summed
            past, unfinished = taps[: K - 1], grown[: K - 1]
            done = t - (K - 1)
            tl.store(
                grad_x + (done - start) * channels + channel,
                grown[K - 1].to(grad_x.dtype.element_ty),
                mask=tl.where(done >= start, done, length) < chunk_end,
            )
            if HAS_INITIAL:
                tl.store(
                    grad_initial + t * channels + channel,
                    grown[K - 1].to(grad_initial.dtype.element_ty),
                    mask=done < origin,
                )

    for s in tl.static_range(K):
        tl.store(grad_parameters + (K - 1 - s) * channels + channel, dw[s], mask=inside)
    tl.store(grad_parameters + K * channels + channel, dbias, mask=inside)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
) -> Tensor:
    """y [B, L, D] in x's dtype. No dimension of x is empty, and K is small: loops over taps
    are unrolled."""
    x = _rows(x)
    cut = _Cut(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        conv_forward_kernel[(cut.programs,)](
            x, *_parameters(x, weight, bias, seq_idx, initial), y,
            *cut.sizes, x.stride(0), x.stride(1),
            **_constants(weight, bias, seq_idx, initial),
        )  # fmt: skip
    return y


def backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, initial; the last two empty where absent."""
    x, grad_y = _rows(x), _rows(grad_y)
    cut, taps = _Cut(x), weight.shape[1]
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_initial = x.new_empty(0) if initial is None else initial.new_empty(initial.shape)
    parts = torch.empty(
        (x.shape[0] * cut.chunks, taps + 1, x.shape[2]), dtype=torch.float32, device=x.device
    )
    with torch.cuda.device_of(x):
        conv_backward_kernel[(cut.programs,)](
            grad_y, x, *_parameters(x, weight, bias, seq_idx, initial),
            grad_x, grad_initial, parts,
            *cut.sizes, x.stride(0), x.stride(1), grad_y.stride(0), grad_y.stride(1),
            **_constants(weight, bias, seq_idx, initial),
        )  # fmt: skip
    sums = parts.sum(0)
    grad_weight = sums[:taps].mT.to(weight.dtype).contiguous()
    grad_bias = x.new_empty(0) if bias is None else sums[taps].to(bias.dtype, copy=True)
    return grad_x, grad_weight, grad_bias, grad_initial


class _Cut:
    """How x is cut: chunks of rows, blocks of channels, and a program for each of both."""

    def __init__(self, x: Tensor) -> None:
        batch, length, channels = x.shape
        blocks = triton.cdiv(channels, CHANNELS)
        enough = batch * blocks * triton.cdiv(length, LONG_CHUNK) >= ENOUGH_PROGRAMS
        chunk_length = LONG_CHUNK if enough else SHORT_CHUNK
        self.chunks = triton.cdiv(length, chunk_length)
        self.programs = batch * self.chunks * blocks
        self.sizes = length, self.chunks, chunk_length, channels, blocks


def _constants(weight: Tensor, bias, seq_idx, initial) -> dict[str, Any]:
    return {
        "K": weight.shape[1], "C": CHANNELS, "T": AHEAD,
        "HAS_BIAS": bias is not None, "HAS_SEQ": seq_idx is not None,
        "HAS_INITIAL": initial is not None, "num_warps": WARPS, "enable_fp_fusion": True,
    }  # fmt: skip


def _parameters(x, weight, bias, seq_idx, initial) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contiguous, and weight as [K, D] in float32; x stands for what is absent."""
    optional = (x if v is None else v.contiguous() for v in (bias, seq_idx, initial))
    return weight.mT.contiguous().float(), *optional


def _rows(x: Tensor) -> Tensor:
    """Any stride but that of the channels."""
    return x if x.stride(2) == 1 else x.contiguous()
