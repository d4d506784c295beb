"""Triton kernels of the causal depthwise convolution followed by SiLU, forward and backward.

    p_t = bias + sum_s w_s x_{t-s}        y_t = silu(p_t)        s = 0 .. K - 1 steps back

where w_s is weight[:, K - 1 - s] and inputs of another document count as zero.

The forward pass works on tiles of rows and channels: a tile is loaded once a tap, all but the first
time from the cache. The backward pass walks through a chunk of rows, one at a time, with the last
K - 1 inputs and the unfinished gradients of these in registers: p and its gradient are computed
once a row. Each chunk leaves its share of the parameters' gradients, and torch adds these up:
the same inputs give the same bits.

Shapes: B batch, L length, D channels, K taps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scangolf.ops.s6_triton_lanes import load_rows, sigmoid

ROWS, CHANNELS = 64, 64  # of a tile of the forward pass
WALKED_CHANNELS = 128  # two for each thread of the backward pass
AHEAD = 6  # rows that the backward pass loads before it uses them
LONG_CHUNK, SHORT_CHUNK = 128, 32
ENOUGH_PROGRAMS = 2048


@triton.jit(do_not_specialize=("length", "tiles", "blocks"))
def forward_kernel(
    x, weight, bias, seq_idx, initial, y,
    length, tiles, channels, blocks, x_batch, x_row,
    K: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """y of R rows and C channels."""
    program = tl.program_id(0)
    channel = program % blocks * C + tl.arange(0, C)
    first = program // blocks % tiles * R
    sequence = (program // blocks // tiles).to(tl.int64)
    inside = (channel < channels)[None, :]
    i = tl.arange(0, R)
    t = first + i
    x += sequence * x_batch + first.to(tl.int64) * x_row
    y += (sequence * length + first) * channels
    seq_idx += sequence * length
    initial += sequence * (K - 1) * channels

    if HAS_BIAS:
        p = tl.load(bias + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        p += tl.zeros([R, C], tl.float32)
    else:
        p = tl.zeros([R, C], tl.float32)
    same = t < length
    if HAS_SEQ:
        later = tl.load(seq_idx + t, mask=same, other=0)
    for s in tl.static_range(K):
        if HAS_SEQ and s > 0:
            earlier = tl.load(seq_idx + tl.maximum(t - s, 0), mask=t < length, other=0)
            same = same & (earlier == later)
            later = earlier
        from_x = (same & (t >= s))[:, None] & inside
        x_s = tl.load(x + (i - s)[:, None] * x_row + channel[None, :], mask=from_x, other=0.0)
        x_s = x_s.to(tl.float32)
        if HAS_INITIAL and s > 0:
            before = initial + (t - s + K - 1)[:, None] * channels + channel[None, :]
            from_initial = (same & (t < s))[:, None] & inside
            x_s += tl.load(before, mask=from_initial, other=0.0).to(tl.float32)
        w = tl.load(weight + (K - 1 - s) * channels + channel[None, :], mask=inside, other=0.0)
        p += w * x_s
    y_t = p * sigmoid(p, False)
    to = y + i[:, None] * channels + channel[None, :]
    tl.store(to, y_t.to(y.dtype.element_ty), mask=(t < length)[:, None] & inside)


@triton.jit(do_not_specialize=("length", "chunks", "chunk_length", "blocks"))
def backward_kernel(
    grad_y, x, weight, bias, seq_idx, initial, grad_x, grad_initial, grad_parameters,
    length, chunks, chunk_length, channels, blocks, x_batch, x_row, dy_batch, dy_row,
    K: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Gradients of a chunk's inputs, and its share of those of weight (rows 0 .. K - 1) and bias.

    The row at t completes the gradient of the input at t - K + 1, so the walk goes K - 1 rows
    beyond the chunk; these count for grad_x only. The first chunk also completes the gradients of
    the inputs before the sequence. `age` is how many rows back the document of row t goes, as far
    as K - 1 rows tell.
    """
    program = tl.program_id(0)
    channel = program % blocks * C + tl.arange(0, C)
    chunk = program // blocks % chunks
    sequence = (program // blocks // chunks).to(tl.int64)
    start = chunk * chunk_length
    end = tl.minimum(start + chunk_length, length)
    inside = channel < channels
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
    grad_parameters += (sequence * chunks + chunk) * (K + 1) * channels

    w = ()
    for s in tl.static_range(K):
        w_s = tl.load(weight + (K - 1 - s) * channels + channel, mask=inside, other=0.0)
        w = w + (w_s,)
    bias_c = tl.zeros([C], tl.float32)
    if HAS_BIAS:
        bias_c += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)

    # newest first: inputs at t - 1 .. t - K + 1, and what is known of their gradients
    past, unfinished = (), ()
    age = start * 0
    for i in tl.static_range(K - 1):
        t = start + i - (K - 1)
        there = tl.where(t >= 0, t, length) < chunk_end
        x_t = tl.load(x + (i - (K - 1)) * x_row + channel, mask=there, other=0.0)
        x_t = x_t.to(tl.float32)
        if HAS_INITIAL:
            before = initial + (t + K - 1) * channels + channel
            x_t += tl.load(before, mask=t < origin, other=0.0).to(tl.float32)
        if HAS_SEQ:
            changes = tl.load(seq_idx + tl.maximum(t, 0)) != tl.load(seq_idx + tl.maximum(t - 1, 0))
            age = tl.where(changes, 0, age + 1)
        past = (x_t,) + past
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
                last = tl.minimum(t, length - 1)
                changes = tl.load(seq_idx + last) != tl.load(seq_idx + tl.maximum(last - 1, 0))
                age = tl.where(changes, 0, age + 1)
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
    (batch, length, channels), taps = x.shape, weight.shape[1]
    y = torch.empty((batch, length, channels), dtype=x.dtype, device=x.device)
    tiles, blocks = triton.cdiv(length, ROWS), triton.cdiv(channels, CHANNELS)
    with torch.cuda.device_of(x):
        forward_kernel[(batch * tiles * blocks,)](
            x, *_parameters(x, weight, bias, seq_idx, initial), y,
            length, tiles, channels, blocks, x.stride(0), x.stride(1),
            K=taps, R=ROWS, C=CHANNELS,
            HAS_BIAS=bias is not None, HAS_SEQ=seq_idx is not None,
            HAS_INITIAL=initial is not None,
            num_warps=4,
            enable_fp_fusion=True,
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
    (batch, length, channels), taps = x.shape, weight.shape[1]

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    blocks = triton.cdiv(channels, WALKED_CHANNELS)
    enough = batch * blocks * triton.cdiv(length, LONG_CHUNK) >= ENOUGH_PROGRAMS
    chunk_length = LONG_CHUNK if enough else SHORT_CHUNK
    chunks = triton.cdiv(length, chunk_length)
    grad_x = empty(batch, length, channels, dtype=x.dtype)
    grad_initial = x.new_empty(0) if initial is None else initial.new_empty(initial.shape)
    parts = empty(batch * chunks, taps + 1, channels)
    with torch.cuda.device_of(x):
        backward_kernel[(batch * chunks * blocks,)](
            grad_y, x, *_parameters(x, weight, bias, seq_idx, initial),
            grad_x, grad_initial, parts,
            length, chunks, chunk_length, channels, blocks,
            x.stride(0), x.stride(1), grad_y.stride(0), grad_y.stride(1),
            K=taps, C=WALKED_CHANNELS, T=AHEAD,
            HAS_BIAS=bias is not None, HAS_SEQ=seq_idx is not None,
            HAS_INITIAL=initial is not None,
            num_warps=2,
            enable_fp_fusion=True,
        )  # fmt: skip
    sums = parts.sum(0)
    grad_weight = sums[:taps].mT.to(weight.dtype).contiguous()
    grad_bias = x.new_empty(0) if bias is None else sums[taps].to(bias.dtype, copy=True)
    return grad_x, grad_weight, grad_bias, grad_initial


def _parameters(x, weight, bias, seq_idx, initial) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contiguous, and weight as [K, D] in float32; x stands for what is absent."""
    optional = (x if v is None else v.contiguous() for v in (bias, seq_idx, initial))
    return weight.mT.contiguous().float(), *optional


def _rows(x: Tensor) -> Tensor:
    """Any stride but that of the channels."""
    return x if x.stride(2) == 1 else x.contiguous()
