"""Triton kernels of the selective scan, forward: the scan, and what a chunk leaves behind.

One program is one warp: C channels (one or two a lane) of one sequence and one chunk of it. With
d = softplus(delta + bias), x = d u and a = exp2(d A), A scaled by log2(e):

    h_t = a_t h_{t-1} + x_t B_t        y_t = (sum_n C_t h_t + D u_t) silu(z_t)

Rows of u, delta, z are loaded T steps ahead of their use. B and C come as one array of float32,
[batch, group, length, 2 N], read by the same address in every lane. A restart is a penalty of
-inf inside the exponent.

Where a sequence is cut into chunks, `summary_kernel` finds what each chunk adds to the state after
it (or, mirrored, to the adjoint before it), and `carry_kernel` goes through the chunks in order.
"""

import triton
import triton.language as tl

from scangolf.ops.s6_triton_lanes import (
    gate,
    load_rows,
    load_state,
    load_weights,
    step_size,
    store_state,
    zero_state,
)

# integers of which a kernel is compiled once for all values
SIZES = ("length", "chunks", "chunk_length", "blocks", "group_blocks")
NEGLIGIBLE = tl.constexpr(-64.0)  # exponent of two


@triton.jit
def place(
    length, chunks, chunk_length, blocks, per_group, group_blocks,
    C: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """What a program works on: sequence, chunk, its first step and that after its last, block of
    channels, group, channels, and the end for each channel: 0 for those that are not there."""
    program = tl.program_id(0)
    block = program % blocks
    chunk = program // blocks % chunks
    sequence = (program // blocks // chunks).to(tl.int64)
    start = chunk * chunk_length
    end = tl.minimum(start + chunk_length, length)
    group = block // group_blocks
    channel = group * per_group + (block % group_blocks) * C + tl.arange(0, C)
    if FULL:
        limit = tl.zeros([C], tl.int32) + end
    else:
        limit = tl.where(channel < (group + 1) * per_group, end, 0)
    return sequence, chunk, start, end, block, group, channel, limit


@triton.jit(do_not_specialize=SIZES)
def scan_kernel(
    u, delta, z, y, A, weights, bias, skip, penalty, states, final,
    length, chunks, chunk_length, channels, blocks, per_group, group_blocks,
    u_batch, u_row, delta_batch, delta_row, z_batch, z_row,
    N: tl.constexpr, C: tl.constexpr, T: tl.constexpr, FULL: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_PENALTY: tl.constexpr,
    SOFTPLUS: tl.constexpr, AHEAD: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """y and the last state, from the state before each chunk."""
    sequence, chunk, start, end, _block, group, channel, limit = place(
        length, chunks, chunk_length, blocks, per_group, group_blocks, C, FULL
    )
    inside = limit > 0
    groups = blocks // group_blocks
    A_n = load_state(A + channel, channels, inside, N)
    bias_c = tl.load(bias + channel, mask=inside, other=0.0) if HAS_BIAS else 0.0
    skip_c = tl.load(skip + channel, mask=inside, other=0.0) if HAS_SKIP else 0.0

    of_chunk = (sequence * chunks + chunk) * N * channels + channel
    h = load_state(states + of_chunk, channels, inside, N)

    u += sequence * u_batch + start.to(tl.int64) * u_row
    delta += sequence * delta_batch + start.to(tl.int64) * delta_row
    z += sequence * z_batch + start.to(tl.int64) * z_row
    y += (sequence * length + start) * channels
    weights += (sequence * groups + group) * length * 2 * N
    penalty += sequence * length

    u_next = load_rows(u, u_row, channel, start, limit, T)
    delta_next = load_rows(delta, delta_row, channel, start, limit, T)
    z_next = load_rows(z, z_row, channel, start, limit, T) if HAS_Z else ()
    w_next = load_weights(weights + start.to(tl.int64) * 2 * N, 2 * N, PTX) if AHEAD else ()
    for first in range(start, end, T):
        u_rows, delta_rows, z_rows = u_next, delta_next, z_next
        u += T * u_row
        delta += T * delta_row
        z += T * z_row
        u_next = load_rows(u, u_row, channel, first + T, limit, T)
        delta_next = load_rows(delta, delta_row, channel, first + T, limit, T)
        if HAS_Z:
            z_next = load_rows(z, z_row, channel, first + T, limit, T)
        for i in tl.static_range(T):
            t = first + i
            if AHEAD:
                w = w_next
                w_next = load_weights(
                    weights + tl.minimum(t + 1, length - 1).to(tl.int64) * 2 * N, 2 * N, PTX
                )
            else:
                w = load_weights(
                    weights + tl.minimum(t, length - 1).to(tl.int64) * 2 * N, 2 * N, PTX
                )
            d, _ = step_size(delta_rows[i], bias_c, t < limit, HAS_BIAS, SOFTPLUS, PTX)
            u_t = u_rows[i].to(tl.float32)
            x = d * u_t
            y_t = skip_c * u_t if HAS_SKIP else tl.zeros([C], tl.float32)
            cut = tl.load(penalty + t, mask=t < end, other=0.0) if HAS_PENALTY else 0.0
            advanced = ()
            for n in tl.static_range(N):
                exponent = d * A_n[n] + cut if HAS_PENALTY else d * A_n[n]
                h_n = tl.exp2(exponent) * h[n] + x * w[n]
                y_t += w[N + n] * h_n
                advanced = advanced + (h_n,)
            h = advanced
            if HAS_Z:
                z_t, s_t = gate(z_rows[i], HAS_Z, PTX)
                y_t *= z_t * s_t
            tl.store(y + i * channels + channel, y_t.to(y.dtype.element_ty), mask=t < limit)
        y += T * channels
    if chunk == chunks - 1:
        store_state(final + sequence * N * channels + channel, channels, inside, h, N)


@triton.jit(do_not_specialize=SIZES)
def summary_kernel(
    u, delta, z, dy, A, weights, bias, penalty, ends, decays,
    length, chunks, chunk_length, channels, blocks, per_group, group_blocks,
    u_batch, u_row, delta_batch, delta_row, z_batch, z_row, dy_batch, dy_row,
    N: tl.constexpr, C: tl.constexpr, T: tl.constexpr, FULL: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_PENALTY: tl.constexpr, SOFTPLUS: tl.constexpr,
    ADJOINT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state after it, and its decay, without a recurrence.

        end = sum_t exp2(A R_t) x_t B_t        decay = exp2(A R)

    R_t, the sum of d after step t, grows as t goes back from the chunk's end; once exp2(A R_t) is
    negligible for four states in all lanes, these are left out. ADJOINT is the mirror image: from
    the chunk's start on, R_t the sum of d up to and with t, dy silu(z) for x, C for B.
    """
    FROM: tl.constexpr = 0 if ADJOINT else T - 1
    TO: tl.constexpr = T if ADJOINT else -1
    STEP: tl.constexpr = 1 if ADJOINT else -1
    sequence, chunk, start, end, _block, group, channel, limit = place(
        length, chunks, chunk_length, blocks, per_group, group_blocks, C, FULL
    )
    inside = limit > 0
    groups = blocks // group_blocks
    A_n = load_state(A + channel, channels, inside, N)
    bias_c = tl.load(bias + channel, mask=inside, other=0.0) if HAS_BIAS else 0.0
    slowest = ()
    for g in tl.static_range(N // 4):
        pair = tl.maximum(A_n[4 * g], A_n[4 * g + 1])
        other = tl.maximum(A_n[4 * g + 2], A_n[4 * g + 3])
        slowest = slowest + (tl.maximum(pair, other),)

    u += sequence * u_batch
    delta += sequence * delta_batch
    z += sequence * z_batch
    dy += sequence * dy_batch
    weights += (sequence * groups + group) * length * 2 * N
    penalty += sequence * length
    if ADJOINT:
        weights += N

    unused = 0 if ADJOINT else chunks - 1
    tiles = tl.where(chunk == unused, 0, tl.cdiv(end - start, T))
    sums = zero_state(N, C)
    passed = tl.zeros([C], tl.float32)
    cut = tl.full([], 0.0, tl.float32)
    done = 0
    while done < tiles:
        first = start + (done if ADJOINT else tiles - 1 - done) * T
        at = first.to(tl.int64)
        delta_rows = load_rows(delta + at * delta_row, delta_row, channel, first, limit, T)
        if ADJOINT:
            rows = load_rows(dy + at * dy_row, dy_row, channel, first, limit, T)
            z_rows = load_rows(z + at * z_row, z_row, channel, first, limit, T) if HAS_Z else ()
        else:
            rows = load_rows(u + at * u_row, u_row, channel, first, limit, T)
        before = passed
        cut_before = cut
        since, cuts, sources = (), (), ()
        for i in tl.static_range(FROM, TO, STEP):
            t = first + i
            d, _ = step_size(delta_rows[i], bias_c, t < limit, HAS_BIAS, SOFTPLUS, PTX)
            source = rows[i].to(tl.float32)
            if ADJOINT:
                passed += d
                if HAS_PENALTY:
                    cut += tl.load(penalty + t, mask=t < end, other=0.0)
                if HAS_Z:
                    z_t, s_t = gate(z_rows[i], HAS_Z, PTX)
                    source *= z_t * s_t
            else:
                source *= d
            if ADJOINT:
                since, cuts, sources = since + (passed,), cuts + (cut,), sources + (source,)
            else:
                since, cuts, sources = (passed,) + since, (cut,) + cuts, (source,) + sources
            if not ADJOINT:
                passed += d
                if HAS_PENALTY:
                    cut += tl.load(penalty + t, mask=t < end, other=0.0)
        any_live = done < 0
        for g in tl.static_range(N // 4):
            live = cut_before > NEGLIGIBLE
            if SOFTPLUS:  # else d may be negative, and what has decayed may grow again
                live = tl.max(slowest[g] * before, axis=0) + cut_before > NEGLIGIBLE
            any_live = any_live | live
            if live:
                s0, s1, s2, s3 = sums[4 * g], sums[4 * g + 1], sums[4 * g + 2], sums[4 * g + 3]
                for i in tl.static_range(FROM, TO, STEP):
                    t = tl.minimum(first + i, length - 1)
                    w = load_weights(weights + t.to(tl.int64) * 2 * N + 4 * g, 4, PTX)
                    s0 += tl.exp2(A_n[4 * g] * since[i] + cuts[i]) * (sources[i] * w[0])
                    s1 += tl.exp2(A_n[4 * g + 1] * since[i] + cuts[i]) * (sources[i] * w[1])
                    s2 += tl.exp2(A_n[4 * g + 2] * since[i] + cuts[i]) * (sources[i] * w[2])
                    s3 += tl.exp2(A_n[4 * g + 3] * since[i] + cuts[i]) * (sources[i] * w[3])
                sums = sums[: 4 * g] + (s0, s1, s2, s3) + sums[4 * g + 4 :]
        done = done + 1 if any_live else tiles

    decay = ()
    for n in tl.static_range(N):
        decay = decay + (tl.exp2(A_n[n] * passed + cut),)
    to = (sequence * chunks + chunk) * N * channels + channel
    store_state(ends + to, channels, inside, sums, N)
    store_state(decays + to, channels, inside, decay, N)


@triton.jit(do_not_specialize=("chunks",))
def carry_kernel(states, ends, decays, chunks, size, ADJOINT: tl.constexpr, BLOCK: tl.constexpr):
    """The state before each chunk (the adjoint after it), from that of the first (the last)."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    first = tl.program_id(1).to(tl.int64) * chunks * size
    if ADJOINT:
        first += (chunks - 1) * size
    at = first + place
    h = tl.load(states + at, mask=inside, other=0.0)
    for _ in range(chunks - 1):
        decay = tl.load(decays + at, mask=inside, other=0.0)
        h = decay * h + tl.load(ends + at, mask=inside, other=0.0)
        at += -size if ADJOINT else size
        tl.store(states + at, h, mask=inside)
