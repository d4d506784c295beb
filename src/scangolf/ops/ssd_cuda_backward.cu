// The SSD scan, backward: against time, with the adjoint dh of the state after a chunk in registers.
// With W_ij = dy_i x_j, M_ij = C_i B_j decay_ij, and h the state before the chunk, as forward saved it:
//
//     dx_j = sum_{i >= j} M_ij d_j dy_i + leave_j B_j dh + D dy_j
//     dB_j = sum_{i >= j} dS_ij C_i + leave_j x_j dh^T           dS_ij = W_ij decay_ij d_j
//     dC_i = sum_{j <= i} dS_ij B_j + enter_i dy_i h^T
//     dh  <- kept dh + sum_i enter_i C_i dy_i
//
// x_j enters all later outputs with a weight that falls with cum_j, y_i has weights that grow with cum_i,
// so the gradient of cum_t is sum_j W_tj M_tj d_j + (what y_t has from h) - d_t (the same of x_t). The
// first and the last nearly cancel: they are sums over rows and over columns of the same float32 numbers.
// A log-decay's gradient is the sum of these from its step on, plus that of the chunk's whole decay.
//
// A warp has 16 rows j for dx and dB, then, when all dS are there, 16 rows i for dC.

struct Shared {
    io x[2][T * P], dy[2][T * P], B[2][T * N], C[2][T * N], h[2][N * P];
    io dh[N * P], dS[T * T];                            // dS: rows j, columns i
    io rows[N > P ? T * N : 8];                         // else where x was
    Steps steps[2];
    // Of the log-decays' gradients, a warp sums a chunk's numbers while the next chunk's come.
    struct Parts {
        float x_u[T];                                   // x_j (dx_j / d_j), without D
        float into[T];                                  // the part of it that is from dh
        float dy_o[WARPS][T];                           // the sum over 16 j of W_ij M_ij d_j
        float from[T];                                  // the part of dy_i y_i that is from h
        float h_dh[WARPS];
    } parts[2];
};

__device__ __forceinline__ float sum_of_quad(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
    for (int by = 16; by; by /= 2) x += __shfl_xor_sync(~0u, x, by);
    return x;
}

// ddt of a chunk, and its part of the gradients of A and of the bias; by one warp.
__device__ __forceinline__ void finish(const Shared::Parts &parts, const Steps &s, float A, float *ddt, int stride,
                                       int first, int length, float &dA, float &dbias) {
    int lane = threadIdx.x % 32;
    float d[2], x_u[2], later[2], into = 0.0f, h_dh = 0.0f;
#pragma unroll
    for (int v = 0; v < 2; ++v) {
        int t = 2 * lane + v;
        float dy_o = parts.from[t];
        for (int w = 0; w <= t / 16; ++w) dy_o += parts.dy_o[w][t];
        d[v] = s.d[t], x_u[v] = parts.x_u[t];
        later[v] = dy_o - d[v] * x_u[v];
        into = fmaf(d[v], parts.into[t], into);
    }
#pragma unroll
    for (int w = 0; w < WARPS; ++w) h_dh += parts.h_dh[w];
    float whole = sum_of_warp(into) + s.kept * h_dh, sum = later[0] + later[1];
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        float after = __shfl_down_sync(~0u, sum, by);
        if (lane + by < 32) sum += after;
    }
    float after = __shfl_down_sync(~0u, sum, 1);
    later[1] += lane < 31 ? after : 0.0f;
    later[0] = sum;
#pragma unroll
    for (int v = 0; v < 2; ++v) {
        int t = 2 * lane + v;
        float dlog = later[v] + whole, gradient = (x_u[v] + A * dlog) * s.slope[t];
        dA = fmaf(d[v], dlog, dA);
        if (first + t < length) dbias += gradient, ddt[(long long)(first + t) * stride] = gradient;
    }
}

static_assert(sizeof(Shared) <= SHARED, "more shared memory than is asked for");

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) backward(const __grid_constant__ Arguments p) {
    extern __shared__ float4 memory[];
    Shared &shared = *(Shared *)memory;
    Place at(p);
    int warp = threadIdx.x / 32, mine = 16 * warp, row = mine + first_row();
    const io *x = at.of_x(p), *B = at.of_B(p), *C = at.of_C(p);
    const io *dy = p.grad_y + at.b * p.dy_batch + (long long)at.head * p.dy_head + at.channel;
    io *dx = p.dx + at.of_y(p);
    long long of_part = ((long long)at.b * p.length * at.parts + at.part), stride = at.parts;
    io *dB = p.dB + of_part * N, *dC = p.dC + of_part * N;
    float A = p.A[at.head], bias = HAS_BIAS ? p.bias[at.head] : 0.0f, skip = HAS_SKIP ? p.skip[at.head] : 0.0f;
    float dA = 0.0f, dbias = 0.0f, dskip = 0.0f;

    auto copy = [&](int chunk) {
        int odd = chunk & 1, first = chunk * T;
        copy_tile<T, P>(shared.x[odd], x, p.x_row, first, p.length);
        copy_tile<T, P>(shared.dy[odd], dy, p.dy_row, first, p.length);
        copy_tile<T, N>(shared.B[odd], B, p.B_row, first, p.length);
        copy_tile<T, N>(shared.C[odd], C, p.C_row, first, p.length);
        copy_tile<N, P>(shared.h[odd], p.states + at.of_chunk(p, chunk), P, 0, N);
        copy_commit();
    };
    bool steps_mine = warp == WARPS - 1;                // whose rows are seen by the fewest columns
    auto finish_chunk = [&](int chunk) {
        finish(shared.parts[chunk & 1], shared.steps[chunk & 1], A, p.ddt + of_part, at.parts, chunk * T, p.length,
               dA, dbias);
    };

    int last = p.chunks - 1;
    copy(last);
    State dh;
    dh.read(p.grad_final ? p.grad_final + at.of_state(p) : nullptr);
    dh.put_tile(shared.dh);
    RawSteps raw;
    if (steps_mine) {
        raw.read(p, at.of_dt(p), at.b, last * T);
        prepare(shared.steps[last & 1], raw, p, LOG2_E * A, bias, last * T);
    }

    for (int chunk = last; chunk >= 0; --chunk) {
        int odd = chunk & 1, first = chunk * T;
        copy_wait<0>();
        __syncthreads();
        if (chunk) {
            copy(chunk - 1);
            if (steps_mine) raw.read(p, at.of_dt(p), at.b, first - T);
        }
        if (steps_mine && chunk < last) finish_chunk(chunk + 1);
        const Steps &s = shared.steps[odd];
        Shared::Parts &parts = shared.parts[odd];
        io *x_tile = shared.x[odd], *dy_tile = shared.dy[odd], *B_tile = shared.B[odd], *C_tile = shared.C[odd];
        io *h_tile = shared.h[odd];
        io *rows = N > P ? shared.rows + mine * N : x_tile + mine * P;  // the warp alone reads its rows of x

        // rows j
        Fragment x_j[P / 16], B_j[N / 16];
#pragma unroll
        for (int c = 0; c < P / 16; ++c) x_j[c] = left<P>(x_tile, mine, c * 16);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) B_j[n] = left<N>(B_tile, mine, n * 16);
        Sums dx_j[P / 16] = {}, dB_j[N / 16] = {};
        float2 into = {0.0f, 0.0f};
#pragma unroll
        for (int c = 0; c < P / 16; ++c) {
#pragma unroll
            for (int n = 0; n < N / 16; ++n) multiply(dx_j[c], B_j[n], right<P>(shared.dh, n * 16, c * 16));
            float2 more = dots<P>(x_tile, mine, c * 16, dx_j[c]);
            into.x += more.x, into.y += more.y;
            multiply(dx_j[c], s.leave[row], s.leave[row + 8]);
        }
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
#pragma unroll
            for (int c = 0; c < P / 16; ++c) multiply(dB_j[n], x_j[c], right_transposed<P>(shared.dh, c * 16, n * 16));
            multiply(dB_j[n], s.leave[row], s.leave[row + 8]);
        }
        float cum_j[2] = {s.cum[row], s.cum[row + 8]}, d_j[2] = {s.d[row], s.d[row + 8]}, x_u[2] = {0.0f, 0.0f};
        int document_j[2] = {HAS_SEQ ? s.document[row] : 0, HAS_SEQ ? s.document[row + 8] : 0};
#pragma unroll 1
        for (int i = mine; i < T; i += 16) {
            Sums M = {}, W = {};
#pragma unroll
            for (int n = 0; n < N / 16; ++n) multiply(M, B_j[n], right_transposed<N>(C_tile, n * 16, i));
#pragma unroll
            for (int c = 0; c < P / 16; ++c) multiply(W, x_j[c], right_transposed<P>(dy_tile, c * 16, i));
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                int column = i + 8 * c + first_column();
                float2 cum_i = *(const float2 *)(s.cum + column), dy_o = {0.0f, 0.0f};
                int document_i[2] = {HAS_SEQ ? s.document[column] : 0, HAS_SEQ ? s.document[column + 1] : 0};
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    int t = row + 8 * r;
                    float2 &m = M.v[c][r], &w = W.v[c][r];
                    float e0 = decay(cum_i.x, cum_j[r], column, t, document_i[0], document_j[r]);
                    float e1 = decay(cum_i.y, cum_j[r], column + 1, t, document_i[1], document_j[r]);
                    m.x *= e0, m.y *= e1;
                    float both0 = m.x * w.x, both1 = m.y * w.y;
                    x_u[r] += both0 + both1;
                    dy_o.x = fmaf(d_j[r], both0, dy_o.x), dy_o.y = fmaf(d_j[r], both1, dy_o.y);
                    m.x *= d_j[r], m.y *= d_j[r];
                    if (HAS_SKIP && t == column) m.x += skip, dskip += w.x;
                    if (HAS_SKIP && t == column + 1) m.y += skip, dskip += w.y;
                    w.x *= e0 * d_j[r], w.y *= e1 * d_j[r];
                }
#pragma unroll
                for (int by = 4; by < 32; by *= 2) {
                    dy_o.x += __shfl_xor_sync(~0u, dy_o.x, by);
                    dy_o.y += __shfl_xor_sync(~0u, dy_o.y, by);
                }
                if (first_row() == 0) *(float2 *)(parts.dy_o[warp] + column) = dy_o;
            }
            Fragment weights = as_left(M), dS = as_left(W);
#pragma unroll
            for (int c = 0; c < P / 16; ++c) multiply(dx_j[c], weights, right<P>(dy_tile, i, c * 16));
#pragma unroll
            for (int n = 0; n < N / 16; ++n) multiply(dB_j[n], dS, right<N>(C_tile, i, n * 16));
#pragma unroll
            for (int v = 0; v < 4; ++v) *(unsigned *)place_of<T>(shared.dS, mine, i, v / 2, v % 2) = dS.r[v];
        }
        into.x = s.exit[row] * sum_of_quad(into.x), into.y = s.exit[row + 8] * sum_of_quad(into.y);
#pragma unroll
        for (int r = 0; r < 2; ++r) x_u[r] = sum_of_quad(x_u[r]);
        if (first_column() == 0) {
            parts.x_u[row] = x_u[0] + into.x, parts.x_u[row + 8] = x_u[1] + into.y;
            parts.into[row] = into.x, parts.into[row + 8] = into.y;
        }
#pragma unroll
        for (int c = 0; c < P / 16; ++c) put<P>(rows, 0, c * 16, dx_j[c]);
        store_rows<P>(dx, rows, stride * P, first + mine, p.length);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) put<N>(rows, 0, n * 16, dB_j[n]);
        store_rows<N>(dB, rows, stride * N, first + mine, p.length);
        __syncthreads();                                // all dS are there, all have read dh

        // rows i
        Sums dC_i[N / 16] = {};
        float2 from = {0.0f, 0.0f};
#pragma unroll
        for (int c = 0; c < P / 16; ++c) {
            Fragment dy_i = left<P>(dy_tile, mine, c * 16);
#pragma unroll
            for (int n = 0; n < N / 16; ++n) multiply(dC_i[n], dy_i, right_transposed<P>(h_tile, c * 16, n * 16));
        }
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
            multiply(dC_i[n], s.enter[row], s.enter[row + 8]);
            float2 more = dots<N>(C_tile, mine, n * 16, dC_i[n]);
            from.x += more.x, from.y += more.y;
        }
        from.x = sum_of_quad(from.x), from.y = sum_of_quad(from.y);
        if (first_column() == 0) parts.from[row] = from.x, parts.from[row + 8] = from.y;
#pragma unroll 1
        for (int j = 0; j <= mine; j += 16) {
            Fragment dS = left_transposed<T>(shared.dS, mine, j);
#pragma unroll
            for (int n = 0; n < N / 16; ++n) multiply(dC_i[n], dS, right<N>(B_tile, j, n * 16));
        }
#pragma unroll
        for (int n = 0; n < N / 16; ++n) put<N>(rows, 0, n * 16, dC_i[n]);
        store_rows<N>(dC, rows, stride * N, first + mine, p.length);

        float h_dh = 0.0f;
#pragma unroll
        for (int r = 0; r < State::ROWS; ++r)
#pragma unroll
            for (int c = 0; c < State::COLUMNS; ++c) {
                float2 more = dots<P>(h_tile, State::row(r), State::column(c), dh.of[r][c]);
                h_dh += more.x + more.y;
            }
        h_dh = sum_of_warp(h_dh);
        if (threadIdx.x % 32 == 0) parts.h_dh[warp] = h_dh;
        dh.update(s.kept, C_tile, dy_tile, s.enter);
        dh.put_tile(shared.dh);
        if (steps_mine && chunk) prepare(shared.steps[odd ^ 1], raw, p, LOG2_E * A, bias, first - T);
    }

    __syncthreads();
    dh.write(p.grad_initial + at.of_state(p));
    if (steps_mine) finish_chunk(0);
    float *skips = shared.parts[1].h_dh;                // not read any more: chunk 0 has the others
    dskip = sum_of_warp(dskip);
    if (threadIdx.x % 32 == 0) skips[warp] = dskip;
    __syncthreads();
    long long of_head = (long long)at.b * at.parts + at.part;
    if (threadIdx.x == 0) p.dskip[of_head] = (skips[0] + skips[1]) + (skips[2] + skips[3]);
    if (steps_mine) {
        dA = sum_of_warp(dA), dbias = sum_of_warp(dbias);
        if (threadIdx.x % 32 == 0) p.dA[of_head] = dA, p.dbias[of_head] = dbias;
    }
}
