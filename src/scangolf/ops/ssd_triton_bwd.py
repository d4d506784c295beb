"""Triton kernels of the SSD scan, backward.

The first goes against time from chunk to chunk, a head of a sequence a program, and leaves the
adjoint of the state after each chunk. The others take the chunks side by side: one head a program
for the gradients of a head's inputs, and all heads of a group one after the other for those of B
and C, which are sums in registers. With
the names of ssd_triton_fwd.py, W_ij = e^(cum_i - cum_j) dy_i . x_j, f_j = e^(total - cum_j) and
dh the adjoint after the chunk:

    dS_ij = d_j W_ij        dC = dS B + e^cum (dy h^T)        dB = dS^T C + f d (x dh^T)
    u_j = sum_i S_ij e^(cum_i - cum_j) dy_i + f_j B_j dh
    dx_j = d_j u_j + D dy_j        dd_j = x_j . u_j + A (gradient of the log-decay at j)

cum_i enters y_i with a plus and, from step i's input, all later outputs with a minus, so its
gradient is dy_i . o_i - d_i x_i . u_i, o without the skip; a log-decay's is the sum of these from
its step on, plus that of total.

Transposes of results of products are not taken: on Hopper some Triton versions get them wrong in a
product. S^T and W^T are products of their own.
"""

import triton
import triton.language as tl

from scangolf.ops.ssd_triton_fwd import SIZES, between, chunk_decays, dot


@triton.jit(do_not_specialize=SIZES)
def adjoint_kernel(
    dt, C, A, bias, documents, grad_y, grad_final, adjoints, grad_initial,
    length, heads, chunks, n, p, per_group,
    dt_batch, dt_row, C_batch, C_row, C_group, dy_batch, dy_row, dy_head,
    Q: tl.constexpr, N: tl.constexpr, P: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SEQ: tl.constexpr, HAS_FINAL: tl.constexpr, SOFTPLUS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """The adjoint of the state after each chunk, and of the first state."""
    head = tl.program_id(0) % heads
    sequence = (tl.program_id(0) // heads).to(tl.int64)
    group = head // per_group
    i_Q, i_N, i_P = tl.arange(0, Q), tl.arange(0, N), tl.arange(0, P)
    in_N, in_P = i_N < n, i_P < p
    dt += sequence * dt_batch + head
    C += sequence * C_batch + group * C_group
    grad_y += sequence * dy_batch + head * dy_head
    documents += sequence * length
    of_state = (sequence * heads + head) * p * n + i_P[None, :] * n + i_N[:, None]
    inside = in_N[:, None] & in_P[None, :]
    A_h = tl.load(A + head).to(tl.float32)

    dh_NP = tl.zeros([N, P], tl.float32)
    if HAS_FINAL:
        dh_NP = tl.load(grad_final + of_state, mask=inside, other=0.0).to(tl.float32)
    for back in range(chunks):
        chunk = chunks - 1 - back
        first = chunk * Q
        t = first + i_Q
        row = t.to(tl.int64)[:, None]
        in_Q = (t < length)[:, None]
        of_chunk = ((sequence * chunks + chunk) * heads + head) * n * p
        to = adjoints + of_chunk + i_N[:, None] * p + i_P[None, :]
        tl.store(to, dh_NP.to(adjoints.dtype.element_ty), mask=inside)
        _, _, cum, total, of, before, last = chunk_decays(
            dt, bias + head, A_h, documents, t, length, first, dt_row,
            HAS_BIAS, SOFTPLUS, HAS_SEQ, PTX,
        )  # fmt: skip
        C_QN = tl.load(C + row * C_row + i_N[None, :], mask=in_Q & in_N[None, :], other=0.0)
        dy_QP = tl.load(grad_y + row * dy_row + i_P[None, :], mask=in_Q & in_P[None, :], other=0.0)
        entering = tl.exp2(tl.where(of == before, cum, float("-inf")))
        kept = tl.exp2(tl.where(last == before, total, float("-inf")))
        C_in_QN = (C_QN.to(tl.float32) * entering[:, None]).to(C_QN.dtype)
        dh_NP = dh_NP * kept + dot(tl.trans(C_in_QN), dy_QP, PRECISION, WIDE)
    tl.store(grad_initial + of_state, dh_NP, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def inputs_kernel(
    x, dt, B, C, A, skip, bias, documents, grad_y, states, adjoints, dx, ddt, dA, dskip,
    length, heads, chunks, n, p, per_group,
    x_batch, x_row, x_head, dt_batch, dt_row,
    B_batch, B_row, B_group, C_batch, C_row, C_group, dy_batch, dy_row, dy_head,
    Q: tl.constexpr, N: tl.constexpr, P: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, SOFTPLUS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """A head and a chunk: dx, ddt, and the sums over the chunk for dA and dskip."""
    head = tl.program_id(0) % heads
    chunk = tl.program_id(0) // heads % chunks
    sequence = (tl.program_id(0) // heads // chunks).to(tl.int64)
    group = head // per_group
    i_Q, i_N, i_P = tl.arange(0, Q), tl.arange(0, N), tl.arange(0, P)
    in_N, in_P = i_N < n, i_P < p
    first = chunk * Q
    t = first + i_Q
    row = t.to(tl.int64)[:, None]
    in_Q = (t < length)[:, None]
    in_QN, in_QP = in_Q & in_N[None, :], in_Q & in_P[None, :]
    A_h = tl.load(A + head).to(tl.float32)
    d, slope, cum, total, of, before, last = chunk_decays(
        dt + sequence * dt_batch + head, bias + head, A_h, documents + sequence * length,
        t, length, first, dt_row, HAS_BIAS, SOFTPLUS, HAS_SEQ, PTX,
    )  # fmt: skip
    entering = tl.exp2(tl.where(of == before, cum, float("-inf")))
    leaving = tl.exp2(tl.where(of == last, total - cum, float("-inf")))
    kept = tl.exp2(tl.where(last == before, total, float("-inf")))

    B_at = sequence * B_batch + group * B_group + row * B_row + i_N[None, :]
    C_at = sequence * C_batch + group * C_group + row * C_row + i_N[None, :]
    B_QN = tl.load(B + B_at, mask=in_QN, other=0.0)
    C_QN = tl.load(C + C_at, mask=in_QN, other=0.0)
    x_at = sequence * x_batch + head * x_head + row * x_row + i_P[None, :]
    x_QP = tl.load(x + x_at, mask=in_QP, other=0.0)
    dy_at = sequence * dy_batch + head * dy_head + row * dy_row + i_P[None, :]
    dy_QP = tl.load(grad_y + dy_at, mask=in_QP, other=0.0)
    of_chunk = (sequence * chunks + chunk) * heads + head
    of_state = of_chunk * n * p + i_N[:, None] * p + i_P[None, :]
    inside = in_N[:, None] & in_P[None, :]
    h_NP = tl.load(states + of_state, mask=inside, other=0.0).to(x_QP.dtype)
    dh_NP = tl.load(adjoints + of_state, mask=inside, other=0.0).to(x_QP.dtype)

    decayT_QQ = between(
        cum[None, :], cum[:, None], i_Q[None, :], i_Q[:, None], of[None, :], of[:, None]
    )
    MT_QQ = dot(B_QN, tl.trans(C_QN), PRECISION, WIDE) * decayT_QQ
    u_QP = dot(MT_QQ.to(dy_QP.dtype), dy_QP, PRECISION, WIDE)
    # what the log-decays get, through cum and through total: sums over rows and over columns of
    # the same numbers, which cancel to the last bit but one
    MT_QQ *= dot(x_QP, tl.trans(dy_QP), PRECISION, WIDE)
    x_u = tl.sum(MT_QQ, axis=1)
    dy_o = tl.sum(MT_QQ * d[:, None], axis=0)
    from_state_QP = entering[:, None] * dot(C_QN, h_NP, PRECISION, WIDE)
    into_state_QP = leaving[:, None] * dot(B_QN, dh_NP, PRECISION, WIDE)
    u_QP += into_state_QP
    wide_x_QP, wide_dy_QP = x_QP.to(tl.float32), dy_QP.to(tl.float32)
    into_state = tl.sum(wide_x_QP * into_state_QP, axis=1)
    x_u += into_state
    dy_o += tl.sum(wide_dy_QP * from_state_QP, axis=1)
    dcum = dy_o - d * x_u
    later = tl.sum(dcum, axis=0) - tl.cumsum(dcum, axis=0) + dcum
    h_dh = tl.sum(tl.sum(h_NP.to(tl.float32) * dh_NP.to(tl.float32), axis=1), axis=0)
    dlog = later + tl.sum(d * into_state, axis=0) + kept * h_dh
    ddt_Q = (x_u + A_h * dlog) * slope
    to_dt = (sequence * length + t) * heads + head
    tl.store(ddt + to_dt, ddt_Q.to(ddt.dtype.element_ty), mask=t < length)
    tl.store(dA + of_chunk, tl.sum(d * dlog, axis=0))

    dx_QP = d[:, None] * u_QP
    if HAS_SKIP:
        skip_h = tl.load(skip + head).to(tl.float32)
        dx_QP += skip_h * wide_dy_QP
        tl.store(dskip + of_chunk, tl.sum(tl.sum(wide_x_QP * wide_dy_QP, axis=1), axis=0))
    to = ((sequence * length + row) * heads + head) * p + i_P[None, :]
    tl.store(dx + to, dx_QP.to(dx.dtype.element_ty), mask=in_QP)


@triton.jit(do_not_specialize=SIZES)
def weights_kernel(
    x, dt, B, C, A, bias, documents, grad_y, states, adjoints, dB, dC,
    length, heads, chunks, n, p, per_group,
    x_batch, x_row, x_head, dt_batch, dt_row,
    B_batch, B_row, B_group, C_batch, C_row, C_group, dy_batch, dy_row, dy_head,
    Q: tl.constexpr, N: tl.constexpr, P: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SEQ: tl.constexpr, SOFTPLUS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """A group of heads, one after the other, and a chunk: dB and dC."""
    groups = heads // per_group
    group = tl.program_id(0) % groups
    chunk = tl.program_id(0) // groups % chunks
    sequence = (tl.program_id(0) // groups // chunks).to(tl.int64)
    i_Q, i_N, i_P = tl.arange(0, Q), tl.arange(0, N), tl.arange(0, P)
    in_N, in_P = i_N < n, i_P < p
    first = chunk * Q
    t = first + i_Q
    row = t.to(tl.int64)[:, None]
    in_Q = (t < length)[:, None]
    in_QN, in_QP = in_Q & in_N[None, :], in_Q & in_P[None, :]
    inside = in_N[:, None] & in_P[None, :]
    B_at = sequence * B_batch + group * B_group + row * B_row + i_N[None, :]
    C_at = sequence * C_batch + group * C_group + row * C_row + i_N[None, :]
    B_QN = tl.load(B + B_at, mask=in_QN, other=0.0)
    C_QN = tl.load(C + C_at, mask=in_QN, other=0.0)
    dB_QN = tl.zeros([Q, N], tl.float32)
    dC_QN = tl.zeros([Q, N], tl.float32)

    for i in range(per_group):
        head = group * per_group + i
        A_h = tl.load(A + head).to(tl.float32)
        d, _, cum, total, of, before, last = chunk_decays(
            dt + sequence * dt_batch + head, bias + head, A_h, documents + sequence * length,
            t, length, first, dt_row, HAS_BIAS, SOFTPLUS, HAS_SEQ, PTX,
        )  # fmt: skip
        entering = tl.exp2(tl.where(of == before, cum, float("-inf")))
        leaving = tl.exp2(tl.where(of == last, total - cum, float("-inf")))
        x_at = sequence * x_batch + head * x_head + row * x_row + i_P[None, :]
        x_QP = tl.load(x + x_at, mask=in_QP, other=0.0)
        dy_at = sequence * dy_batch + head * dy_head + row * dy_row + i_P[None, :]
        dy_QP = tl.load(grad_y + dy_at, mask=in_QP, other=0.0)
        of_chunk = ((sequence * chunks + chunk) * heads + head) * n * p
        of_state = of_chunk + i_N[:, None] * p + i_P[None, :]
        h_NP = tl.load(states + of_state, mask=inside, other=0.0).to(x_QP.dtype)
        dh_NP = tl.load(adjoints + of_state, mask=inside, other=0.0).to(x_QP.dtype)

        dS_QQ = dot(dy_QP, tl.trans(x_QP), PRECISION, WIDE) * d[None, :]
        dS_QQ *= between(
            cum[:, None], cum[None, :], i_Q[:, None], i_Q[None, :], of[:, None], of[None, :]
        )
        dC_QN += dot(dS_QQ.to(B_QN.dtype), B_QN, PRECISION, WIDE)
        dC_QN += entering[:, None] * dot(dy_QP, tl.trans(h_NP), PRECISION, WIDE)
        dST_QQ = dot(x_QP, tl.trans(dy_QP), PRECISION, WIDE) * d[:, None]
        dST_QQ *= between(
            cum[None, :], cum[:, None], i_Q[None, :], i_Q[:, None], of[None, :], of[:, None]
        )
        dB_QN += dot(dST_QQ.to(C_QN.dtype), C_QN, PRECISION, WIDE)
        dB_QN += (leaving * d)[:, None] * dot(x_QP, tl.trans(dh_NP), PRECISION, WIDE)

    to = ((sequence * length + row) * groups + group) * n + i_N[None, :]
    tl.store(dB + to, dB_QN.to(dB.dtype.element_ty), mask=in_QN)
    tl.store(dC + to, dC_QN.to(dC.dtype.element_ty), mask=in_QN)
