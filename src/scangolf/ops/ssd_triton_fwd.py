"""Triton kernel of the SSD scan, forward.

One program is one head of one sequence. It goes from chunk to chunk with the state [N, P] in
registers; with cum_i the sum of the log-decays d A up to and with step i of the chunk, and
S = C B^T, the chunk's outputs are one masked product and one with the state before it:

    y_i = sum_{j <= i} S_ij e^(cum_i - cum_j) d_j x_j + e^(cum_i) C_i h
    h  <- e^total h + sum_j e^(total - cum_j) d_j B_j x_j

No exponent is positive: decays are exponentials of differences. Where documents change, what would
cross the border is masked. Dao & Gu 2024 (arXiv:2405.21060), section 6.

Shapes: Q steps of a chunk, N state, P head size, padded to powers of two of 16 at least.
"""

import triton
import triton.language as tl

from scangolf.ops.s6_triton_lanes import LOG2_E, step_size

SIZES = ("length", "heads", "chunks", "n", "p")


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """The matrix product in float32. WIDE is for the interpreter, which has none of bfloat16."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def chunk_decays(
    dt, bias, A, documents, t, length, first, dt_row,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_SEQ: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Of a chunk's steps t: d, its slope, cum and total in powers of two, and the documents: of
    each step, of the step before the chunk, and of its last step (zeros without documents)."""
    row = tl.load(dt + t.to(tl.int64) * dt_row, mask=t < length, other=0.0)
    b = tl.load(bias).to(tl.float32) if HAS_BIAS else 0.0
    d, slope = step_size(row, b, t < length, HAS_BIAS, SOFTPLUS, PTX)
    steps = d * (A * LOG2_E)
    cum = tl.cumsum(steps, axis=0)
    total = tl.sum(steps, axis=0)
    if HAS_SEQ:
        of = tl.load(documents + tl.minimum(t, length - 1))
        before = tl.load(documents + tl.maximum(first - 1, 0))
        last = tl.max(of, axis=0)  # they are counted
    else:
        of, before, last = t * 0, 0, 0
    return d, slope, cum, total, of, before, last


@triton.jit
def between(cum_i, cum_j, i, j, of_i, of_j):
    """The decay from step j to step i, broadcast; 0 where j is later or of another document."""
    seen = (i >= j) & (of_i == of_j)
    return tl.exp2(tl.where(seen, cum_i - cum_j, float("-inf")))


@triton.jit(do_not_specialize=SIZES)
def scan_kernel(
    x, dt, B, C, A, skip, bias, documents, initial, y, states, final,
    length, heads, chunks, n, p, per_group,
    x_batch, x_row, x_head, dt_batch, dt_row,
    B_batch, B_row, B_group, C_batch, C_row, C_group,
    Q: tl.constexpr, N: tl.constexpr, P: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, HAS_INITIAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """y, the state before each chunk, and the last state."""
    head = tl.program_id(0) % heads
    sequence = (tl.program_id(0) // heads).to(tl.int64)
    group = head // per_group
    i_Q, i_N, i_P = tl.arange(0, Q), tl.arange(0, N), tl.arange(0, P)
    in_N, in_P = i_N < n, i_P < p
    x += sequence * x_batch + head * x_head
    dt += sequence * dt_batch + head
    B += sequence * B_batch + group * B_group
    C += sequence * C_batch + group * C_group
    documents += sequence * length
    y += (sequence * length * heads + head) * p
    of_state = (sequence * heads + head) * p * n + i_P[None, :] * n + i_N[:, None]
    inside = in_N[:, None] & in_P[None, :]
    A_h = tl.load(A + head).to(tl.float32)
    skip_h = tl.load(skip + head).to(tl.float32) if HAS_SKIP else 0.0

    h_NP = tl.zeros([N, P], tl.float32)
    if HAS_INITIAL:
        h_NP = tl.load(initial + of_state, mask=inside, other=0.0).to(tl.float32)
    for chunk in range(chunks):
        first = chunk * Q
        t = first + i_Q
        row = t.to(tl.int64)[:, None]
        in_Q = (t < length)[:, None]
        of_chunk = ((sequence * chunks + chunk) * heads + head) * n * p
        to = states + of_chunk + i_N[:, None] * p + i_P[None, :]
        tl.store(to, h_NP.to(states.dtype.element_ty), mask=inside)
        d, _, cum, total, of, before, last = chunk_decays(
            dt, bias + head, A_h, documents, t, length, first, dt_row,
            HAS_BIAS, SOFTPLUS, HAS_SEQ, PTX,
        )  # fmt: skip
        x_QP = tl.load(x + row * x_row + i_P[None, :], mask=in_Q & in_P[None, :], other=0.0)
        B_QN = tl.load(B + row * B_row + i_N[None, :], mask=in_Q & in_N[None, :], other=0.0)
        C_QN = tl.load(C + row * C_row + i_N[None, :], mask=in_Q & in_N[None, :], other=0.0)

        S_QQ = dot(C_QN, tl.trans(B_QN), PRECISION, WIDE)
        decay_QQ = between(
            cum[:, None], cum[None, :], i_Q[:, None], i_Q[None, :], of[:, None], of[None, :]
        )
        M_QQ = (S_QQ * decay_QQ * d[None, :]).to(x_QP.dtype)
        y_QP = dot(M_QQ, x_QP, PRECISION, WIDE)
        entering = tl.exp2(tl.where(of == before, cum, float("-inf")))
        h_in_NP = h_NP.to(x_QP.dtype)
        y_QP += entering[:, None] * dot(C_QN, h_in_NP, PRECISION, WIDE)

        leaving = tl.exp2(tl.where(of == last, total - cum, float("-inf"))) * d
        kept = tl.exp2(tl.where(last == before, total, float("-inf")))
        B_out_QN = (B_QN.to(tl.float32) * leaving[:, None]).to(x_QP.dtype)
        h_NP = h_NP * kept + dot(tl.trans(B_out_QN), x_QP, PRECISION, WIDE)

        if HAS_SKIP:
            y_QP += skip_h * x_QP.to(tl.float32)
        to = y + row * heads * p + i_P[None, :]
        tl.store(to, y_QP.to(y.dtype.element_ty), mask=in_Q & in_P[None, :])
    tl.store(final + of_state, h_NP, mask=inside)
