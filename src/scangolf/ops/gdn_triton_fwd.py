"""Triton kernels of the gated delta rule, forward.

With D_ts the decay from step s to step t of a chunk, e_t that from before the chunk and S the state
before it, a step finds u_t, the value less what is held under its key, and writes beta_t u_t there:

    u_t + sum_{s<t} F_ts beta_s u_s = v_t - e_t S^T k_t        F_ts = D_ts (k_t . k_s)

The first kernel inverts the matrices 1 + F beta of all chunks side by side. In the second a program
is a head of a sequence and a block of the value's columns, which have nothing to do with each
other; it goes from chunk to chunk with these columns of the state in registers:

    u = (1 + F beta)^-1 (v - e k S)
    o = e q S + (D q k^T) beta u
    S <- whole S + (exit beta k)^T u

A chunk and a head have one record, for the backward pass: the state before the chunk [K, V], the
inverse [T, T] and u [T, V], padded, in the dtype of the inputs.

Sums of log-decays are kept in two parts, whole powers of two, which are exact, and what is left, so
that a strong decay costs the steps after it no precision. One that leaves nothing, as that between
documents, counts as 2^GONE: what crosses it is zero, and so are its gradients.

Gated DeltaNet (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464), section 3.3.

Shapes: T (and S) steps of a chunk, K key, V value, padded to powers of two of 16 at least; C
columns of a block of the value.
"""

import triton
import triton.language as tl

from scangolf.ops.s6_triton_lanes import LOG2_E
from scangolf.ops.ssd_triton_fwd import dot

SIZES = ("length", "heads", "chunks")
SMALLEST = tl.constexpr(-150.0)  # 2^-150 is 0 in float32
GONE = tl.constexpr(-1024.0)  # a whole number, far below what is 0 in float32
BLOCK = tl.constexpr(16)  # of the matrices that are inverted row by row


@triton.jit
def cumulated(g, documents, t, length, g_row, HAS_SEQ: tl.constexpr):
    """Of a chunk's steps t: the sums of the log-decays up to and with t, and of all, in whole
    powers of two and what is left."""
    row = tl.load(g + t.to(tl.int64) * g_row, mask=t < length, other=0.0)
    twos = row.to(tl.float32) * LOG2_E
    gone = twos < SMALLEST
    if HAS_SEQ:
        of = tl.load(documents + tl.minimum(t, length - 1))
        before = tl.load(documents + tl.maximum(tl.minimum(t, length) - 1, 0))
        gone = gone | ((of != before) & (t < length))
    twos = tl.where(gone, GONE, twos)
    whole = tl.ceil(twos)
    rest = twos - whole
    sums = tl.cumsum(whole, axis=0), tl.cumsum(rest, axis=0)
    return sums, (tl.sum(whole, axis=0), tl.sum(rest, axis=0))


@triton.jit
def between(to, since, allowed):
    """The decay from `since` to `to`, two sums of log-decays, broadcast; 0 where not allowed."""
    exponent = (to[0] - since[0]) + (to[1] - since[1])
    return tl.exp2(tl.where(allowed, exponent, float("-inf")))


@triton.jit
def to_rows(sums):
    return sums[0][:, None], sums[1][:, None]


@triton.jit
def to_columns(sums):
    return sums[0][None, :], sums[1][None, :]


@triton.jit
def borders(sums, total):
    """The decays of steps from before the chunk and to its end, and that of the whole chunk."""
    entry = tl.exp2(sums[0] + sums[1])
    exit = tl.exp2((total[0] - sums[0]) + (total[1] - sums[1]))
    return entry, exit, tl.exp2(total[0] + total[1])


@triton.jit
def inverse_of_blocks(L_TS, T: tl.constexpr):
    """(1 + L)^-1 of the blocks on the diagonal, zeros elsewhere; L has no numbers but below it.

    All blocks at once: as soon as a row is known, those below lose their part of it. Powers of L
    would take fewer steps, and overflow where keys are alike.
    """
    COUNT: tl.constexpr = T // BLOCK
    b, i = tl.arange(0, COUNT), tl.arange(0, BLOCK)
    own = b[:, None, None, None] == b[None, None, :, None]
    L_BIBJ = tl.reshape(L_TS, [COUNT, BLOCK, COUNT, BLOCK])
    L_BIJ = tl.sum(tl.where(own, L_BIBJ, 0.0), axis=2)
    row, column = i[None, :, None], i[None, None, :]
    X_BIJ = tl.where(row == column, 1.0, tl.zeros([COUNT, BLOCK, BLOCK], tl.float32))
    for n in range(BLOCK - 1):
        known_BJ = tl.sum(tl.where(row == n, X_BIJ, 0.0), axis=1)
        below_BI = tl.sum(tl.where(column == n, L_BIJ, 0.0), axis=2)
        X_BIJ -= below_BI[:, :, None] * known_BJ[:, None, :]
    return tl.reshape(tl.where(own, X_BIJ[:, :, None, :], 0.0), [T, T])


@triton.jit
def merged(X_TS, L_TS, t, s, SIZE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """The inverse of blocks of 2 SIZE on the diagonal, from that of blocks of SIZE."""
    within = (t // (2 * SIZE) == s // (2 * SIZE)) & (t // SIZE != s // SIZE)
    corner_TS = tl.where(within, L_TS, 0.0)
    return X_TS - dot(dot(X_TS, corner_TS, PRECISION, WIDE), X_TS, PRECISION, WIDE)


@triton.jit(do_not_specialize=SIZES)
def inverse_kernel(
    k, g, beta, documents, records,
    length, heads, chunks,
    k_batch, k_row, k_head, g_batch, g_row, beta_batch, beta_row,
    T: tl.constexpr, K: tl.constexpr, V: tl.constexpr, key_dim: tl.constexpr,
    HAS_SEQ: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A head and a chunk: (1 + F beta)^-1."""
    head = tl.program_id(0) % heads
    chunk = tl.program_id(0) // heads % chunks
    sequence = (tl.program_id(0) // heads // chunks).to(tl.int64)
    i_T, i_K = tl.arange(0, T), tl.arange(0, K)
    in_K = i_K < key_dim
    t = chunk * T + i_T
    row, in_T = t.to(tl.int64), t < length
    sums, _ = cumulated(
        g + sequence * g_batch + head, documents + sequence * length, t, length, g_row, HAS_SEQ
    )
    beta_T = tl.load(beta + sequence * beta_batch + head + row * beta_row, mask=in_T, other=0.0)
    k += sequence * k_batch + head * k_head
    at = row[:, None] * k_row + i_K[None, :]
    k_TK = tl.load(k + at, mask=in_T[:, None] & in_K[None, :], other=0.0)
    # loaded once more: Triton 3.6 cannot multiply a tile with its own transpose
    at = row[None, :] * k_row + i_K[:, None]
    k_KT = tl.load(k + at, mask=in_T[None, :] & in_K[:, None], other=0.0)

    i_t, i_s = i_T[:, None], i_T[None, :]
    L_TS = dot(k_TK, k_KT, PRECISION, WIDE) * beta_T.to(tl.float32)[None, :]
    L_TS *= between(to_rows(sums), to_columns(sums), i_t > i_s)
    X_TS = inverse_of_blocks(L_TS, T)
    if T > BLOCK:
        X_TS = merged(X_TS, L_TS, i_t, i_s, BLOCK, PRECISION, WIDE)
    if T > 2 * BLOCK:
        X_TS = merged(X_TS, L_TS, i_t, i_s, 2 * BLOCK, PRECISION, WIDE)
    record = ((sequence * chunks + chunk) * heads + head) * (K * V + T * T + T * V)
    tl.store(records + record + K * V + i_t * T + i_s, X_TS.to(records.dtype.element_ty))


@triton.jit(do_not_specialize=SIZES)
def rule_kernel(
    q, k, v, g, beta, documents, initial, o, records, final,
    length, heads, chunks,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    g_batch, g_row, beta_batch, beta_row,
    T: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    key_dim: tl.constexpr, value_dim: tl.constexpr, HAS_SEQ: tl.constexpr,
    HAS_INITIAL: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """o, the last state, and of the records the states and u."""
    columns = tl.program_id(0) % (V // C) * C
    head = tl.program_id(0) // (V // C) % heads
    sequence = (tl.program_id(0) // (V // C) // heads).to(tl.int64)
    i_T, i_K, i_C = tl.arange(0, T), tl.arange(0, K), columns + tl.arange(0, C)
    in_K, in_C = i_K < key_dim, i_C < value_dim
    q += sequence * q_batch + head * q_head
    k += sequence * k_batch + head * k_head
    v += sequence * v_batch + head * v_head
    g += sequence * g_batch + head
    beta += sequence * beta_batch + head
    documents += sequence * length
    o += (sequence * length * heads + head) * value_dim
    of_state = (sequence * heads + head) * key_dim * value_dim
    of_state += i_K[:, None] * value_dim + i_C[None, :]
    inside = in_K[:, None] & in_C[None, :]

    S_KC = tl.zeros([K, C], tl.float32)
    if HAS_INITIAL:
        S_KC = tl.load(initial + of_state, mask=inside, other=0.0).to(tl.float32)
    for chunk in range(chunks):
        t = chunk * T + i_T
        row, in_T = t.to(tl.int64), t < length
        record = records + ((sequence * chunks + chunk) * heads + head) * (K * V + T * T + T * V)
        dtype = record.dtype.element_ty
        sums, total = cumulated(g, documents, t, length, g_row, HAS_SEQ)
        entry, exit, whole = borders(sums, total)
        beta_T = tl.load(beta + row * beta_row, mask=in_T, other=0.0).to(tl.float32)
        in_TK, in_TC = in_T[:, None] & in_K[None, :], in_T[:, None] & in_C[None, :]
        q_TK = tl.load(q + row[:, None] * q_row + i_K[None, :], mask=in_TK, other=0.0)
        k_TK = tl.load(k + row[:, None] * k_row + i_K[None, :], mask=in_TK, other=0.0)
        v_TC = tl.load(v + row[:, None] * v_row + i_C[None, :], mask=in_TC, other=0.0)
        X_TS = tl.load(record + K * V + i_T[:, None] * T + i_T[None, :])

        S_in_KC = S_KC.to(dtype)
        tl.store(record + i_K[:, None] * V + i_C[None, :], S_in_KC)
        errors_TC = v_TC.to(tl.float32) - entry[:, None] * dot(k_TK, S_in_KC, PRECISION, WIDE)
        u_TC = dot(X_TS, errors_TC.to(dtype), PRECISION, WIDE)
        to = record + K * V + T * T + i_T[:, None] * V + i_C[None, :]
        tl.store(to, u_TC.to(dtype))
        w_TC = beta_T[:, None] * u_TC

        o_TC = entry[:, None] * dot(q_TK, S_in_KC, PRECISION, WIDE)
        scores_TS = dot(q_TK, tl.trans(k_TK), PRECISION, WIDE)
        scores_TS *= between(to_rows(sums), to_columns(sums), i_T[:, None] >= i_T[None, :])
        o_TC += dot(scores_TS.to(dtype), w_TC.to(dtype), PRECISION, WIDE)
        to = o + row[:, None] * heads * value_dim + i_C[None, :]
        tl.store(to, o_TC.to(o.dtype.element_ty), mask=in_TC)

        kept_TC = (exit[:, None] * w_TC).to(dtype)
        S_KC = whole * S_KC + dot(tl.trans(k_TK), kept_TC, PRECISION, WIDE)
    tl.store(final + of_state, S_KC, mask=inside)
