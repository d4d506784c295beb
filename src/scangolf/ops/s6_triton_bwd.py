"""Triton kernels of the selective scan, backward: one sweep along time, one against it.

Neither keeps a history of states. With the adjoint g_t = C_t dy_t + g'_t, g'_t = a_{t+1} g_{t+1},
and h'_t = a_t h_{t-1}, the gradient of the exponent d_t A is, for each n,

    w_t = a_t g_t h_{t-1} = w_{t+1} + C_t dy_t h'_t - x_t B_t g'_t

so the first sweep, which has h, and the second, which has g, need to share sums over n only:

    P_t = dy_t sum_n A C_t h'_t        Q_t = x_t sum_n A B_t g'_t
    W_t = sum_n A w_t = W_{t+1} + P_t - Q_t
    dA  = sum_t d_t w_t = S_last w_{last+1} + sum_t S_t (C_t dy_t h'_t - x_t B_t g'_t)

with S_t = d_first + ... + d_t. h' and g' leave out the step's own input, so the differences are as
small as the decays are. Both sums start afresh in every span of SPAN steps, at whose end the first
sweep leaves h and S: rounding errors do not grow with the length.

dB and dC are sums over channels: each program writes those of its channels. dy is that of the
ungated output, grad_y silu(z).
"""

import triton
import triton.language as tl

from scangolf.ops.s6_triton_fwd import SIZES, place
from scangolf.ops.s6_triton_lanes import (
    LN_2,
    gate,
    load_rows,
    load_state,
    load_weights,
    step_size,
    store_channel_sums,
    store_state,
    zero_state,
)


@triton.jit(do_not_specialize=SIZES)
def states_kernel(
    u, delta, z, grad_y, A, weights, bias, skip, penalty, states,
    dz, dC, dA, P, span_states, span_steps,
    length, chunks, chunk_length, channels, blocks, per_group, group_blocks,
    u_batch, u_row, delta_batch, delta_row, z_batch, z_row, dy_batch, dy_row,
    N: tl.constexpr, C: tl.constexpr, T: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_PENALTY: tl.constexpr, SOFTPLUS: tl.constexpr, AHEAD: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Along time: dz, dC, P, a share of dA, and h and S at the end of every span."""
    sequence, chunk, start, end, block, group, channel, limit = place(
        length, chunks, chunk_length, blocks, per_group, group_blocks, C, FULL
    )
    inside = limit > 0
    groups = blocks // group_blocks
    A_n = load_state(A + channel, channels, inside, N)
    bias_c = tl.load(bias + channel, mask=inside, other=0.0) if HAS_BIAS else 0.0
    skip_c = tl.load(skip + channel, mask=inside, other=0.0) if HAS_SKIP else 0.0
    of_chunk = (sequence * chunks + chunk) * N * channels + channel
    h = load_state(states + of_chunk, channels, inside, N)
    dA_n = zero_state(N, C)

    u += sequence * u_batch + start.to(tl.int64) * u_row
    delta += sequence * delta_batch + start.to(tl.int64) * delta_row
    z += sequence * z_batch + start.to(tl.int64) * z_row
    grad_y += sequence * dy_batch + start.to(tl.int64) * dy_row
    of_row = (sequence * length + start) * channels
    dz += of_row
    P += of_row
    dC += ((sequence * blocks + block) * length + start) * N
    weights += (sequence * groups + group) * length * 2 * N
    penalty += sequence * length
    span = sequence * tl.cdiv(length, SPAN) + start // SPAN

    u_next = load_rows(u, u_row, channel, start, limit, T)
    delta_next = load_rows(delta, delta_row, channel, start, limit, T)
    z_next = load_rows(z, z_row, channel, start, limit, T) if HAS_Z else ()
    dy_next = load_rows(grad_y, dy_row, channel, start, limit, T)
    w_next = load_weights(weights + start.to(tl.int64) * 2 * N, 2 * N, PTX) if AHEAD else ()
    for span_start in range(start, end, SPAN):
        S = tl.zeros([C], tl.float32)
        for first in range(span_start, tl.minimum(span_start + SPAN, end), T):
            u_rows, delta_rows, z_rows, dy_rows = u_next, delta_next, z_next, dy_next
            u += T * u_row
            delta += T * delta_row
            z += T * z_row
            grad_y += T * dy_row
            u_next = load_rows(u, u_row, channel, first + T, limit, T)
            delta_next = load_rows(delta, delta_row, channel, first + T, limit, T)
            if HAS_Z:
                z_next = load_rows(z, z_row, channel, first + T, limit, T)
            dy_next = load_rows(grad_y, dy_row, channel, first + T, limit, T)
            for i in tl.static_range(T):
                t = first + i
                valid = t < limit
                if AHEAD:
                    w = w_next
                    w_next = load_weights(
                        weights + tl.minimum(t + 1, length - 1).to(tl.int64) * 2 * N, 2 * N, PTX
                    )
                else:
                    w = load_weights(
                        weights + tl.minimum(t, length - 1).to(tl.int64) * 2 * N, 2 * N, PTX
                    )
                d, _ = step_size(delta_rows[i], bias_c, valid, HAS_BIAS, SOFTPLUS, PTX)
                u_t = u_rows[i].to(tl.float32)
                x = d * u_t
                dy = dy_rows[i].to(tl.float32)
                if HAS_Z:
                    z_t, s_t = gate(z_rows[i], HAS_Z, PTX)
                    dz_dy = dy * s_t * (1.0 + z_t * (1.0 - s_t))
                    dy *= z_t * s_t
                S += d
                S_dy = S * dy
                cut = tl.load(penalty + t, mask=t < end, other=0.0) if HAS_PENALTY else 0.0
                y_t = skip_c * u_t if HAS_SKIP else tl.zeros([C], tl.float32)
                p = tl.zeros([C], tl.float32)
                advanced, dA_new, dC_n = (), (), ()
                for n in tl.static_range(N):
                    exponent = d * A_n[n] + cut if HAS_PENALTY else d * A_n[n]
                    decayed = tl.exp2(exponent) * h[n]
                    h_n = x * w[n] + decayed
                    seen = w[N + n] * decayed
                    p += A_n[n] * seen
                    dA_new = dA_new + (dA_n[n] + S_dy * seen,)
                    dC_n = dC_n + (dy * h_n,)
                    y_t += w[N + n] * h_n
                    advanced = advanced + (h_n,)
                h, dA_n = advanced, dA_new
                tl.store(P + i * channels + channel, dy * p, mask=valid)
                store_channel_sums(dC + i * N, dC_n, t < end, N, C, PTX)
                if HAS_Z:
                    dz_t = (dz_dy * y_t).to(dz.dtype.element_ty)
                    tl.store(dz + i * channels + channel, dz_t, mask=valid)
            P += T * channels
            dz += T * channels
            dC += T * N
        store_state(span_states + span * N * channels + channel, channels, inside, h, N)
        tl.store(span_steps + span * channels + channel, S, mask=inside)
        span += 1
    store_state(dA + of_chunk, channels, inside, dA_n, N)


@triton.jit(do_not_specialize=SIZES)
def adjoint_kernel(
    u, delta, z, grad_y, A, weights, bias, skip, penalty, exits,
    P, span_states, span_steps, du, ddelta, dB, dA, dskip, dbias, grad_initial,
    length, chunks, chunk_length, channels, blocks, per_group, group_blocks,
    u_batch, u_row, delta_batch, delta_row, z_batch, z_row, dy_batch, dy_row,
    N: tl.constexpr, C: tl.constexpr, T: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    HAS_PENALTY: tl.constexpr, SOFTPLUS: tl.constexpr, AHEAD: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Against time: du, ddelta, dB, the rest of dA, the sums over time of dD and dbias."""
    sequence, chunk, start, end, block, group, channel, limit = place(
        length, chunks, chunk_length, blocks, per_group, group_blocks, C, FULL
    )
    inside = limit > 0
    groups = blocks // group_blocks
    A_n = load_state(A + channel, channels, inside, N)
    bias_c = tl.load(bias + channel, mask=inside, other=0.0) if HAS_BIAS else 0.0
    skip_c = tl.load(skip + channel, mask=inside, other=0.0) if HAS_SKIP else 0.0
    of_chunk = (sequence * chunks + chunk) * N * channels + channel
    g = load_state(exits + of_chunk, channels, inside, N)
    dA_n = load_state(dA + of_chunk, channels, inside, N)
    dskip_c = tl.zeros([C], tl.float32)
    dbias_c = tl.zeros([C], tl.float32)

    blocks_of_rows = tl.cdiv(end - start, T)
    first = start + (blocks_of_rows - 1) * T
    u += sequence * u_batch + first.to(tl.int64) * u_row
    delta += sequence * delta_batch + first.to(tl.int64) * delta_row
    z += sequence * z_batch + first.to(tl.int64) * z_row
    grad_y += sequence * dy_batch + first.to(tl.int64) * dy_row
    of_row = (sequence * length + first) * channels
    P += of_row
    du += of_row
    ddelta += of_row
    dB += ((sequence * blocks + block) * length + first) * N
    weights += (sequence * groups + group) * length * 2 * N
    penalty += sequence * length
    spans = tl.cdiv(end - start, SPAN)
    span = sequence * tl.cdiv(length, SPAN) + start // SPAN + spans - 1

    u_next = load_rows(u, u_row, channel, first, limit, T)
    delta_next = load_rows(delta, delta_row, channel, first, limit, T)
    z_next = load_rows(z, z_row, channel, first, limit, T) if HAS_Z else ()
    dy_next = load_rows(grad_y, dy_row, channel, first, limit, T)
    P_next = load_rows(P, channels, channel, first, limit, T)
    last = tl.minimum(first + T, length) - 1
    w_next = load_weights(weights + last.to(tl.int64) * 2 * N, 2 * N, PTX) if AHEAD else ()
    for back in range(spans):
        span_start = start + (spans - 1 - back) * SPAN
        h = load_state(span_states + span * N * channels + channel, channels, inside, N)
        S = tl.load(span_steps + span * channels + channel, mask=inside, other=0.0)
        span -= 1
        W = tl.zeros([C], tl.float32)
        dA_new = ()
        for n in tl.static_range(N):
            w_n = g[n] * h[n]
            W += A_n[n] * w_n
            dA_new = dA_new + (dA_n[n] + S * w_n,)
        dA_n = dA_new
        for _ in range(span_start, tl.minimum(span_start + SPAN, end), T):
            u_rows, delta_rows, z_rows, dy_rows = u_next, delta_next, z_next, dy_next
            P_rows = P_next
            ahead = tl.where(first > start, T, 0)
            u -= ahead * u_row
            delta -= ahead * delta_row
            z -= ahead * z_row
            grad_y -= ahead * dy_row
            P -= ahead * channels
            u_next = load_rows(u, u_row, channel, first - ahead, limit, T)
            delta_next = load_rows(delta, delta_row, channel, first - ahead, limit, T)
            if HAS_Z:
                z_next = load_rows(z, z_row, channel, first - ahead, limit, T)
            dy_next = load_rows(grad_y, dy_row, channel, first - ahead, limit, T)
            P_next = load_rows(P, channels, channel, first - ahead, limit, T)
            for i in tl.static_range(T - 1, -1, -1):
                t = first + i
                valid = t < limit
                if AHEAD:
                    w = w_next
                    before = tl.maximum(tl.minimum(t, length) - 1, 0)
                    w_next = load_weights(weights + before.to(tl.int64) * 2 * N, 2 * N, PTX)
                else:
                    w = load_weights(
                        weights + tl.minimum(t, length - 1).to(tl.int64) * 2 * N, 2 * N, PTX
                    )
                d, slope = step_size(delta_rows[i], bias_c, valid, HAS_BIAS, SOFTPLUS, PTX)
                u_t = u_rows[i].to(tl.float32)
                x = d * u_t
                dy = dy_rows[i].to(tl.float32)
                if HAS_Z:
                    z_t, s_t = gate(z_rows[i], HAS_Z, PTX)
                    dy *= z_t * s_t
                S_x = S * x
                S -= d
                cut = tl.load(penalty + t, mask=t < end, other=0.0) if HAS_PENALTY else 0.0
                q = tl.zeros([C], tl.float32)
                dx = tl.zeros([C], tl.float32)
                advanced, dA_new, dB_n = (), (), ()
                for n in tl.static_range(N):
                    exponent = d * A_n[n] + cut if HAS_PENALTY else d * A_n[n]
                    g_n = w[N + n] * dy + g[n]
                    seen = w[n] * g[n]
                    q += A_n[n] * seen
                    dA_new = dA_new + (dA_n[n] - S_x * seen,)
                    dB_n = dB_n + (x * g_n,)
                    dx += w[n] * g_n
                    advanced = advanced + (tl.exp2(exponent) * g_n,)
                g, dA_n = advanced, dA_new
                W += P_rows[i] - x * q
                if HAS_PENALTY:
                    W = tl.where(cut == 0.0, W, 0.0)
                dd = (W * LN_2 + u_t * dx) * slope
                du_t = d * dx
                if HAS_SKIP:
                    du_t += skip_c * dy
                    dskip_c += dy * u_t
                if HAS_BIAS:
                    dbias_c += tl.where(valid, dd, 0.0)
                tl.store(du + i * channels + channel, du_t.to(du.dtype.element_ty), mask=valid)
                tl.store(
                    ddelta + i * channels + channel, dd.to(ddelta.dtype.element_ty), mask=valid
                )
                store_channel_sums(dB + i * N, dB_n, t < end, N, C, PTX)
            first -= T
            du -= T * channels
            ddelta -= T * channels
            dB -= T * N
    store_state(dA + of_chunk, channels, inside, dA_n, N)
    of_block = (sequence * chunks + chunk) * channels + channel
    if HAS_SKIP:
        tl.store(dskip + of_block, dskip_c, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + of_block, dbias_c, mask=inside)
    if chunk == 0:
        of_sequence = sequence * N * channels + channel
        store_state(grad_initial + of_sequence, channels, inside, g, N)
