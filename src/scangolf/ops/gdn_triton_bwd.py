"""Triton kernels of the gated delta rule, backward.

The first goes against time from chunk to chunk, as the forward pass does a block of the value's
columns a program, and leaves the gradients of the values and of the states after the chunks. The
other two take the chunks side by side, a head of a sequence a program: what comes through the
scores, then all else. With the names of gdn_triton_fwd.py and dS the gradient of the state after
the chunk,

    dv = (1 + F beta)^-T beta ((D q k^T)^T do + exit k dS)
    dS <- whole dS + (e q)^T do - (e k)^T dv
    dscores = do (beta u)^T, s <= t only        dF = -dv (beta u)^T, s < t only
    dq = e do S^T + (D dscores) k
    dk = exit beta u dS^T - e dv S^T + (D dscores)^T q + (D dF + (D dF)^T) k

beta is met in beta u only. A log-decay has the sum of what the logarithms of the decays over its
step get: sums of these, never differences of sums, so that one of which nothing is left has zero.

Transposes of results of products are not taken: on Hopper some Triton versions get them wrong in a
product. What is needed both ways is two products.
"""

import triton
import triton.language as tl

from scangolf.ops.gdn_triton_fwd import SIZES, between, borders, cumulated, to_columns, to_rows
from scangolf.ops.ssd_triton_fwd import dot


@triton.jit(do_not_specialize=SIZES)
def adjoint_kernel(
    q, k, g, beta, documents, grad_o, grad_final, records, adjoints, dv, grad_initial,
    length, heads, chunks,
    q_batch, q_row, q_head, k_batch, k_row, k_head, do_batch, do_row, do_head,
    g_batch, g_row, beta_batch, beta_row,
    T: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    key_dim: tl.constexpr, value_dim: tl.constexpr, HAS_SEQ: tl.constexpr,
    HAS_FINAL: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dv, and the gradients of the state after each chunk and of the first."""
    columns = tl.program_id(0) % (V // C) * C
    head = tl.program_id(0) // (V // C) % heads
    sequence = (tl.program_id(0) // (V // C) // heads).to(tl.int64)
    i_T, i_K, i_C = tl.arange(0, T), tl.arange(0, K), columns + tl.arange(0, C)
    in_K, in_C = i_K < key_dim, i_C < value_dim
    q += sequence * q_batch + head * q_head
    k += sequence * k_batch + head * k_head
    grad_o += sequence * do_batch + head * do_head
    g += sequence * g_batch + head
    beta += sequence * beta_batch + head
    documents += sequence * length
    dv += (sequence * length * heads + head) * value_dim
    of_state = (sequence * heads + head) * key_dim * value_dim
    of_state += i_K[:, None] * value_dim + i_C[None, :]
    inside = in_K[:, None] & in_C[None, :]

    dS_KC = tl.zeros([K, C], tl.float32)
    if HAS_FINAL:
        dS_KC = tl.load(grad_final + of_state, mask=inside, other=0.0).to(tl.float32)
    for back in range(chunks):
        chunk = chunks - 1 - back
        t = chunk * T + i_T
        row, in_T = t.to(tl.int64), t < length
        of_chunk = (sequence * chunks + chunk) * heads + head
        dtype = adjoints.dtype.element_ty
        sums, total = cumulated(g, documents, t, length, g_row, HAS_SEQ)
        entry, exit, whole = borders(sums, total)
        beta_T = tl.load(beta + row * beta_row, mask=in_T, other=0.0).to(tl.float32)
        in_TK, in_TC = in_T[:, None] & in_K[None, :], in_T[:, None] & in_C[None, :]
        q_TK = tl.load(q + row[:, None] * q_row + i_K[None, :], mask=in_TK, other=0.0)
        k_TK = tl.load(k + row[:, None] * k_row + i_K[None, :], mask=in_TK, other=0.0)
        do_TC = tl.load(grad_o + row[:, None] * do_row + i_C[None, :], mask=in_TC, other=0.0)
        of_inverse = of_chunk * (K * V + T * T + T * V) + K * V
        X_TS = tl.load(records + of_inverse + i_T[:, None] * T + i_T[None, :])

        dS_out_KC = dS_KC.to(dtype)
        tl.store(adjoints + of_chunk * K * V + i_K[:, None] * V + i_C[None, :], dS_out_KC)
        scores_ST = dot(k_TK, tl.trans(q_TK), PRECISION, WIDE)
        scores_ST *= between(to_columns(sums), to_rows(sums), i_T[:, None] <= i_T[None, :])
        dw_TC = exit[:, None] * dot(k_TK, dS_out_KC, PRECISION, WIDE)
        dw_TC += dot(scores_ST.to(dtype), do_TC, PRECISION, WIDE)
        du_TC = (beta_T[:, None] * dw_TC).to(dtype)
        dv_TC = dot(tl.trans(X_TS), du_TC, PRECISION, WIDE)
        to = dv + row[:, None] * heads * value_dim + i_C[None, :]
        tl.store(to, dv_TC.to(dv.dtype.element_ty), mask=in_TC)

        read_TC = (entry[:, None] * do_TC.to(tl.float32)).to(dtype)
        held_TC = (entry[:, None] * dv_TC).to(dtype)
        dS_KC = whole * dS_KC + dot(tl.trans(q_TK), read_TC, PRECISION, WIDE)
        dS_KC -= dot(tl.trans(k_TK), held_TC, PRECISION, WIDE)
    tl.store(grad_initial + of_state, dS_KC, mask=inside)


@triton.jit
def over_spans(
    dlog_TS, dlog_exit_S, dlog_entry_T,
    dtype: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradient of g [T] from those of the logarithms of decays: inner ones, from a step to the end
    of the chunk, and from before the chunk to a step."""
    i_T = tl.arange(0, T)
    ends_TT = tl.where(i_T[:, None] <= i_T[None, :], 1.0, 0.0).to(dtype)
    over_TS = dot(ends_TT, dlog_TS.to(dtype), PRECISION, WIDE) + dlog_exit_S[None, :]
    over_TS = tl.where(i_T[:, None] > i_T[None, :], over_TS, 0.0)
    return tl.sum(over_TS, axis=1) + tl.cumsum(dlog_entry_T, axis=0, reverse=True)


@triton.jit(do_not_specialize=SIZES)
def scores_kernel(
    q, k, g, beta, documents, grad_o, records, dq, dk, g_part, beta_part,
    length, heads, chunks,
    q_batch, q_row, q_head, k_batch, k_row, k_head, do_batch, do_row, do_head,
    g_batch, g_row, beta_batch, beta_row,
    T: tl.constexpr, K: tl.constexpr, V: tl.constexpr, key_dim: tl.constexpr,
    value_dim: tl.constexpr, HAS_SEQ: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A head and a chunk: dq, and what k, g and beta get through o."""
    head = tl.program_id(0) % heads
    chunk = tl.program_id(0) // heads % chunks
    sequence = (tl.program_id(0) // heads // chunks).to(tl.int64)
    i_T, i_K, i_V = tl.arange(0, T), tl.arange(0, K), tl.arange(0, V)
    in_K, in_V = i_K < key_dim, i_V < value_dim
    t = chunk * T + i_T
    row, in_T = t.to(tl.int64), t < length
    in_TK, in_TV = in_T[:, None] & in_K[None, :], in_T[:, None] & in_V[None, :]
    dtype = records.dtype.element_ty
    sums, total = cumulated(
        g + sequence * g_batch + head, documents + sequence * length, t, length, g_row, HAS_SEQ
    )
    entry, _, _ = borders(sums, total)
    beta += sequence * beta_batch + head
    beta_T = tl.load(beta + row * beta_row, mask=in_T, other=0.0).to(tl.float32)
    q += sequence * q_batch + head * q_head
    q_TK = tl.load(q + row[:, None] * q_row + i_K[None, :], mask=in_TK, other=0.0)
    k += sequence * k_batch + head * k_head
    k_TK = tl.load(k + row[:, None] * k_row + i_K[None, :], mask=in_TK, other=0.0)
    grad_o += sequence * do_batch + head * do_head
    do_TV = tl.load(grad_o + row[:, None] * do_row + i_V[None, :], mask=in_TV, other=0.0)
    records += ((sequence * chunks + chunk) * heads + head) * (K * V + T * T + T * V)
    S_KV = tl.load(records + i_K[:, None] * V + i_V[None, :])
    u_TV = tl.load(records + K * V + T * T + i_T[:, None] * V + i_V[None, :])
    of_keys = ((sequence * length + row[:, None]) * heads + head) * key_dim + i_K[None, :]
    of_steps = (sequence * length + row) * heads + head

    dqk_ST = dot(u_TV, tl.trans(do_TV), PRECISION, WIDE) * beta_T[:, None]
    dqk_ST *= between(to_columns(sums), to_rows(sums), i_T[:, None] <= i_T[None, :])
    dk_TK = dot(dqk_ST.to(dtype), q_TK, PRECISION, WIDE)
    tl.store(dk + of_keys, dk_TK.to(dk.dtype.element_ty), mask=in_TK)

    dqk_TS = dot(do_TV, tl.trans(u_TV), PRECISION, WIDE)
    dqk_TS *= between(to_rows(sums), to_columns(sums), i_T[:, None] >= i_T[None, :])
    dlog_TS = dqk_TS * dot(q_TK, tl.trans(k_TK), PRECISION, WIDE)
    tl.store(beta_part + of_steps, tl.sum(dlog_TS, axis=0), mask=in_T)
    dread_TK = entry[:, None] * dot(do_TV, tl.trans(S_KV), PRECISION, WIDE)
    dlog_entry_T = tl.sum(q_TK.to(tl.float32) * dread_TK, axis=1)
    dqk_TS *= beta_T[None, :]
    dq_TK = dread_TK + dot(dqk_TS.to(dtype), k_TK, PRECISION, WIDE)
    tl.store(dq + of_keys, dq_TK.to(dq.dtype.element_ty), mask=in_TK)
    dlog_TS *= beta_T[None, :]
    nothing_T = tl.zeros([T], tl.float32)
    dg_T = over_spans(dlog_TS, nothing_T, dlog_entry_T, dtype, T, PRECISION, WIDE)
    tl.store(g_part + of_steps, dg_T, mask=in_T)


@triton.jit(do_not_specialize=SIZES)
def keys_kernel(
    k, g, beta, documents, records, adjoints, dv, g_part, beta_part, dk, dg, dbeta,
    length, heads, chunks,
    k_batch, k_row, k_head, g_batch, g_row, beta_batch, beta_row,
    T: tl.constexpr, K: tl.constexpr, V: tl.constexpr, key_dim: tl.constexpr,
    value_dim: tl.constexpr, HAS_SEQ: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A head and a chunk: dk, dg and dbeta, from what they got through o and the rest."""
    head = tl.program_id(0) % heads
    chunk = tl.program_id(0) // heads % chunks
    sequence = (tl.program_id(0) // heads // chunks).to(tl.int64)
    i_T, i_K, i_V = tl.arange(0, T), tl.arange(0, K), tl.arange(0, V)
    in_K, in_V = i_K < key_dim, i_V < value_dim
    t = chunk * T + i_T
    row, in_T = t.to(tl.int64), t < length
    in_TK, in_TV = in_T[:, None] & in_K[None, :], in_T[:, None] & in_V[None, :]
    dtype = records.dtype.element_ty
    sums, total = cumulated(
        g + sequence * g_batch + head, documents + sequence * length, t, length, g_row, HAS_SEQ
    )
    entry, exit, whole = borders(sums, total)
    beta += sequence * beta_batch + head
    beta_T = tl.load(beta + row * beta_row, mask=in_T, other=0.0).to(tl.float32)
    k += sequence * k_batch + head * k_head
    k_TK = tl.load(k + row[:, None] * k_row + i_K[None, :], mask=in_TK, other=0.0)
    of_steps = (sequence * length + row) * heads + head
    of_values = of_steps[:, None] * value_dim + i_V[None, :]
    dv_TV = tl.load(dv + of_values, mask=in_TV, other=0.0)
    of_chunk = (sequence * chunks + chunk) * heads + head
    records += of_chunk * (K * V + T * T + T * V)
    S_KV = tl.load(records + i_K[:, None] * V + i_V[None, :])
    u_TV = tl.load(records + K * V + T * T + i_T[:, None] * V + i_V[None, :])
    dS_KV = tl.load(adjoints + of_chunk * K * V + i_K[:, None] * V + i_V[None, :])

    # through the states before and after the chunk
    dkept_TK = exit[:, None] * dot(u_TV, tl.trans(dS_KV), PRECISION, WIDE)
    dheld_TK = entry[:, None] * dot(dv_TV, tl.trans(S_KV), PRECISION, WIDE)
    wide_k_TK = k_TK.to(tl.float32)
    dbeta_T = tl.sum(wide_k_TK * dkept_TK, axis=1)
    dlog_exit_T = beta_T * dbeta_T
    dlog_entry_T = -tl.sum(wide_k_TK * dheld_TK, axis=1)
    S_dS = tl.sum(tl.sum(S_KV.to(tl.float32) * dS_KV.to(tl.float32), axis=1), axis=0)
    dlog_entry_T += tl.where(i_T == T - 1, whole * S_dS, 0.0)
    dk_TK = beta_T[:, None] * dkept_TK - dheld_TK

    # through the system: dkk is D dF + (D dF)^T, at first without beta
    later, earlier = i_T[:, None] > i_T[None, :], i_T[:, None] < i_T[None, :]
    lower_TS = dot(dv_TV, tl.trans(u_TV), PRECISION, WIDE)
    lower_TS *= between(to_rows(sums), to_columns(sums), later)
    upper_TS = dot(u_TV, tl.trans(dv_TV), PRECISION, WIDE)
    upper_TS *= between(to_columns(sums), to_rows(sums), earlier)
    dkk_TS = -lower_TS - upper_TS
    at = row[None, :] * k_row + i_K[:, None]
    k_KT = tl.load(k + at, mask=in_T[None, :] & in_K[:, None], other=0.0)
    dlog_TS = dkk_TS * dot(k_TK, k_KT, PRECISION, WIDE)
    dbeta_T += tl.sum(tl.where(earlier, dlog_TS, 0.0), axis=1)
    dlog_TS = tl.where(later, dlog_TS * beta_T[None, :], 0.0)
    dkk_TS *= tl.where(later, beta_T[None, :], beta_T[:, None])
    dk_TK += dot(dkk_TS.to(dtype), k_TK, PRECISION, WIDE)

    to = dk + of_steps[:, None] * key_dim + i_K[None, :]
    dk_TK += tl.load(to, mask=in_TK, other=0.0).to(tl.float32)
    tl.store(to, dk_TK.to(dk.dtype.element_ty), mask=in_TK)
    dbeta_T += tl.load(beta_part + of_steps, mask=in_T, other=0.0)
    tl.store(dbeta + of_steps, dbeta_T.to(dbeta.dtype.element_ty), mask=in_T)
    dg_T = over_spans(dlog_TS, dlog_exit_T, dlog_entry_T, dtype, T, PRECISION, WIDE)
    dg_T += tl.load(g_part + of_steps, mask=in_T, other=0.0)
    tl.store(dg + of_steps, dg_T.to(dg.dtype.element_ty), mask=in_T)
