// The selective scan, backward: one sweep along time, one against it (docs/scan.md, section 3).
//
// Every warp does all there is to do for its 32 channels: helping warps, as in the forward pass, cost
// more instructions here than they hide of their latency. Where there are few channels, time is cut into
// chunks, which start from states that the forward pass saved; what a chunk adds to the adjoint before
// it falls off the first sweep.
//
// The outputs of a tile take the place of its inputs in shared memory, to be stored 16 bytes at a time.

struct Own {                                                            // a warp's rows of its 32 channels
    static constexpr int VECTOR = 16 / sizeof(io), A_ROW = 32 / VECTOR, AT_ONCE = 32 / A_ROW;
    long long at;                                                       // of the lane, in a [b, t, d] tensor

    static __device__ __forceinline__ int lane_row() { return threadIdx.x % 32 / A_ROW; }
    static __device__ __forceinline__ int lane_channel() {
        return threadIdx.x / 32 * 32 + threadIdx.x % 32 % A_ROW * VECTOR;
    }
    static __device__ __forceinline__ int in_tile() { return lane_row() * CHANNELS + lane_channel(); }
    static __device__ __forceinline__ int left(const Place &at, int rows) {
        return (lane_channel() < at.there ? rows : 0) - lane_row();
    }

    __device__ __forceinline__ Own(const Arguments &p, const Place &place, int first) {
        at = place.of_row(p, first + lane_row()) + lane_channel();
    }
    __device__ __forceinline__ void copy(io *tile, const io *from, const Arguments &p, int left) const {
#pragma unroll
        for (int i = 0; i < ROWS; i += AT_ONCE) {
            const io *source = from + at + (long long)i * p.channels;
            copy_16(tile + in_tile() + i * CHANNELS, i < left ? source : from, i < left);
        }
    }
    __device__ __forceinline__ void store(io *to, const io *tile, const Arguments &p, int left) const {
#pragma unroll
        for (int i = 0; i < ROWS; i += AT_ONCE)
            if (i < left)
                *(float4 *)(to + at + (long long)i * p.channels) =
                    *(const float4 *)(tile + in_tile() + i * CHANNELS);
    }
    __device__ __forceinline__ void advance(const Arguments &p, int steps) { at += (long long)steps * p.channels; }
};

#ifdef ALONG
// Along time: dz, dC, P, a share of dA; at the end of every span h, the sum of steps and what was
// rounded off P; and, where there are chunks, what one adds to the adjoint before it, and its decay.
extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) along(const __grid_constant__ Arguments p) {
    constexpr int TENSORS = 4;
    extern __shared__ float4 shared[];
    float *weights = (float *)shared;                                   // [2, ROWS, WIDTH]
    float *quads = weights + 2 * ROWS * WIDTH;                          // [2, ROWS, A_STEP]: of dC
    io *rows = (io *)(quads + 2 * ChannelSum::SIZE);                    // [2, u delta z grad_y, ROWS, CHANNELS]
    char *raw = (char *)(rows + 2 * TENSORS * TILE);                    // [2, SLOT]
    Place at(p, true);

    float A[STATES], h[STATES], dA[STATES], entry[STATES], decay[STATES], S = 0.0f, left_over = 0.0f;
    load_A(A, p, at);
    load_rows(h, p.states + at.of_chunk(p, at.k), p, at);
#pragma unroll
    for (int n = 0; n < STATES; ++n) dA[n] = 0.0f, entry[n] = 0.0f, decay[n] = 1.0f;
    float bias = HAS_BIAS && at.inside ? p.bias[at.channel] : 0.0f;
    float skip = HAS_SKIP && at.inside ? p.skip[at.channel] : 0.0f;

    Source source(p, at, at.start);
    Own own(p, at, at.start);
    source.copy(rows, at.end - at.start, ROWS, at);
    Weights::copy(raw, p, at, at.start);
    Weights::copy(raw + Weights::SLOT, p, at, at.start + ROWS);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    Weights::widen_into(weights, raw, p, at.start);
    ChannelSum over_channels;

    for (int first = at.start, odd = 0; first < at.end; first += ROWS, odd ^= 1) {
        copy_wait<0>();
        __syncthreads();
        source.copy(rows + (odd ^ 1) * TENSORS * TILE, at.end - first - ROWS, ROWS, at);
        Weights::copy(raw + odd * Weights::SLOT, p, at, first + 2 * ROWS);
        copy_commit();
        Weights::widen_into(weights + (odd ^ 1) * ROWS * WIDTH, raw + (odd ^ 1) * Weights::SLOT, p, first + ROWS);
        if (first > at.start)
            ChannelSum::add_quads(at.of_block(p, p.dC), quads + (odd ^ 1) * ChannelSum::SIZE, first - ROWS, at.end);
        io *tile = rows + odd * TENSORS * TILE;
        const float *w = weights + odd * ROWS * WIDTH;
        float *channel_sums = quads + odd * ChannelSum::SIZE;
#pragma unroll 1
        for (int base = 0; base < ROWS; base += UNROLLED) {
            float d[UNROLLED], x[UNROLLED], dy[UNROLLED], dz_dy[UNROLLED], y[UNROLLED], P_dy[UNROLLED];
            float4 dC_[UNROLLED / ChannelSum::TOGETHER];
#pragma unroll
            for (int i = 0; i < UNROLLED / ChannelSum::TOGETHER; ++i) dC_[i] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int i = 0; i < UNROLLED; ++i) {
                const io *row = tile + (base + i) * CHANNELS + threadIdx.x;
                float slope, u = widen(row[0]);
                d[i] = step_size(widen(row[TILE]), bias, first + base + i < at.end, slope);
                dy[i] = widen(row[3 * TILE]), dz_dy[i] = 0.0f;
                if (HAS_Z) {
                    float z = widen(row[2 * TILE]), s = sigmoid(z);
                    dz_dy[i] = dy[i] * s * fmaf(z, 1.0f - s, 1.0f);
                    dy[i] *= z * s;
                }
                x[i] = d[i] * u;
                y[i] = HAS_SKIP ? skip * u : 0.0f, P_dy[i] = 0.0f;
            }
#pragma unroll
            for (int i = 0; i < UNROLLED; ++i) {
                const float *B = w + (base + i) * WIDTH, *C = B + TOTAL;
                float restart = HAS_SEQ ? B[2 * TOTAL] : 0.0f;
                S += d[i];
                float S_dy = S * dy[i];
#pragma unroll
                for (int m = 0; m < STATES; m += 4) {
                    float B_[4], C_[4], v[4];
                    get_4(B_, B + m), get_4(C_, C + m);
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        int n = m + j;
                        float a = exp2_(HAS_SEQ ? fmaf(d[i], A[n], restart) : d[i] * A[n]);
                        float decayed = a * h[n], seen = C_[j] * decayed;
                        h[n] = fmaf(x[i], B_[j], decayed);
                        P_dy[i] = fmaf(A[n], seen, P_dy[i]);
                        dA[n] = fmaf(S_dy, seen, dA[n]);
                        if (HAS_Z) y[i] = fmaf(C_[j], h[n], y[i]);
                        v[j] = dy[i] * h[n];
                        if (CHUNKED) {
                            decay[n] *= a;
                            entry[n] = fmaf(decay[n], C_[j] * dy[i], entry[n]);
                        }
                    }
                    int matrix = i % ChannelSum::TOGETHER * (STATES / 4) + m / 4;
                    over_channels.add(dC_[i / ChannelSum::TOGETHER], matrix, v);
                }
            }
#pragma unroll
            for (int i = 0; i < UNROLLED; ++i) {
                // what is rounded off goes into the next P: sums of P stay exact to one rounding
                float exact = fmaf(dy[i], P_dy[i], left_over);
                io P = narrow(exact);
                left_over = exact - widen(P);
                tile[(base + i) * CHANNELS + threadIdx.x] = P;
                if (HAS_Z) tile[TILE + (base + i) * CHANNELS + threadIdx.x] = narrow(dz_dy[i] * y[i]);
            }
#pragma unroll
            for (int i = 0; i < UNROLLED; i += ChannelSum::TOGETHER)
                ChannelSum::put(channel_sums + (base + i) * ChannelSum::A_STEP, dC_[i / ChannelSum::TOGETHER]);
        }
        __syncwarp();
        int left = Own::left(at, at.end - first);
        own.store(p.P, tile, p, left);
        if (HAS_Z) own.store(p.dz, tile + TILE, p, left);
        own.advance(p, ROWS);
        if (at.ends_span(first + ROWS)) {
            long long span = at.span(p, first + ROWS);
            store_rows_of_state(p.span_states + span * TOTAL * p.channels + at.channel, h, p, at);
            if (at.inside) {
                p.span_sums[2 * span * p.channels + at.channel] = S;
                p.span_sums[(2 * span + 1) * p.channels + at.channel] = left_over;
            }
            S = 0.0f, left_over = 0.0f;
        }
    }
    __syncthreads();
    int tiles = (at.end - at.start + ROWS - 1) / ROWS;
    ChannelSum::add_quads(at.of_block(p, p.dC), quads + (tiles - 1) % 2 * ChannelSum::SIZE,
                          at.start + (tiles - 1) * ROWS, at.end);
    store_rows_of_state(p.dA + at.of_chunk(p, at.k), dA, p, at);
    if (CHUNKED) {
        store_rows_of_state(p.entries + at.of_chunk(p, at.k), entry, p, at);
        store_rows_of_state(p.decays + at.of_chunk(p, at.k), decay, p, at);
    }
}

// The adjoint after each chunk, from that after the last.
extern "C" __global__ void carry(const __grid_constant__ Arguments p) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, size = (long long)TOTAL * p.channels;
    if (i >= size) return;
    int n = i / p.channels, channel = i % p.channels, b = blockIdx.y;
    long long of_final = ((long long)b * p.channels + channel) * p.n + n;
    float g = p.grad_final && n < p.n ? p.grad_final[of_final] : 0.0f;
    for (int k = p.chunks - 1; k >= 0; --k) {
        long long to = ((long long)b * p.chunks + k) * size + i;
        p.exits[to] = g;
        g = fmaf(p.decays[to], g, p.entries[to]);
    }
}
#endif

#ifdef AGAINST
// Against time: du (in place of P), ddelta, dB, the rest of dA, the sums over time of dD and dbias.
extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) against(const __grid_constant__ Arguments p) {
    constexpr int TENSORS = 5;
    extern __shared__ float4 shared[];
    float *weights = (float *)shared;                                   // [2, ROWS, WIDTH]
    float *quads = weights + 2 * ROWS * WIDTH;                          // [2, ROWS, A_STEP]: of dB
    io *rows = (io *)(quads + 2 * ChannelSum::SIZE);                    // [2, u delta z grad_y P, ROWS, CHANNELS]
    char *raw = (char *)(rows + 2 * TENSORS * TILE);                    // [2, SLOT]
    Place at(p, true);
    int last = at.start + (at.end - at.start - 1) / ROWS * ROWS, odd = 0;

    float A[STATES], g[STATES], dA[STATES], dskip = 0.0f, dbias = 0.0f, S = 0.0f, W = 0.0f;
    load_A(A, p, at);
    if (CHUNKED) load_rows(g, p.exits + at.of_chunk(p, at.k), p, at);
    else load_state(g, p.grad_final, p, at);
    load_rows(dA, p.dA + at.of_chunk(p, at.k), p, at);
    float bias = HAS_BIAS && at.inside ? p.bias[at.channel] : 0.0f;
    float skip = HAS_SKIP && at.inside ? p.skip[at.channel] : 0.0f;

    Source source(p, at, last);
    auto copy = [&](int first, int odd) {
        io *to = rows + odd * TENSORS * TILE;
        if (first >= at.start) {
            source.copy(to, at.end - first, -ROWS, at);
            Own(p, at, first).copy(to + 4 * TILE, p.P, p, Own::left(at, at.end - first));
        }
        Weights::copy(raw + odd * Weights::SLOT, p, at, first - ROWS);  // to be widened a tile later
        copy_commit();
    };
    Weights::copy(raw + Weights::SLOT, p, at, last);
    copy(last, odd);
    copy_wait<0>();
    __syncthreads();
    Weights::widen_into(weights, raw + Weights::SLOT, p, last);
    ChannelSum over_channels;

    for (int first = last; first >= at.start; first -= ROWS, odd ^= 1) {
        copy_wait<0>();
        __syncthreads();
        copy(first - ROWS, odd ^ 1);
        Weights::widen_into(weights + (odd ^ 1) * ROWS * WIDTH, raw + odd * Weights::SLOT, p, first - ROWS);
        if (first < last)
            ChannelSum::add_quads(at.of_block(p, p.dB), quads + (odd ^ 1) * ChannelSum::SIZE, first + ROWS, at.end);
        if (at.ends_span(first + ROWS)) {
            long long span = at.span(p, first + ROWS);
            const float *h = p.span_states + span * TOTAL * p.channels + at.channel;
            S = at.inside ? p.span_sums[2 * span * p.channels + at.channel] : 0.0f;
            W = at.inside ? p.span_sums[(2 * span + 1) * p.channels + at.channel] : 0.0f;
#pragma unroll
            for (int n = 0; n < STATES; ++n) {
                float product = at.inside ? g[n] * h[(long long)n * p.channels] : 0.0f;
                W = fmaf(A[n], product, W);
                dA[n] = fmaf(S, product, dA[n]);
                if (n % 4 == 3) asm volatile("" ::: "memory");          // all loads at once: too many registers
            }
        }
        io *tile = rows + odd * TENSORS * TILE;
        const float *w = weights + odd * ROWS * WIDTH;
        float *channel_sums = quads + odd * ChannelSum::SIZE;
#pragma unroll 1
        for (int base = ROWS - UNROLLED; base >= 0; base -= UNROLLED) {
            float d[UNROLLED], slope[UNROLLED], u[UNROLLED], dy[UNROLLED], Q_x[UNROLLED], dx[UNROLLED];
            float4 dB_[UNROLLED / ChannelSum::TOGETHER];
#pragma unroll
            for (int i = 0; i < UNROLLED / ChannelSum::TOGETHER; ++i) dB_[i] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int i = UNROLLED - 1; i >= 0; --i) {
                const io *row = tile + (base + i) * CHANNELS + threadIdx.x;
                u[i] = widen(row[0]);
                d[i] = step_size(widen(row[TILE]), bias, first + base + i < at.end, slope[i]);
                dy[i] = widen(row[3 * TILE]);
                if (HAS_Z) {
                    float z = widen(row[2 * TILE]);
                    dy[i] *= z * sigmoid(z);
                }
                Q_x[i] = 0.0f, dx[i] = 0.0f;
            }
#pragma unroll
            for (int i = UNROLLED - 1; i >= 0; --i) {
                const float *B = w + (base + i) * WIDTH, *C = B + TOTAL;
                float restart = HAS_SEQ ? B[2 * TOTAL] : 0.0f;
                float x = d[i] * u[i], S_x = S * x;
                S -= d[i];
#pragma unroll
                for (int m = 0; m < STATES; m += 4) {
                    float B_[4], C_[4], v[4];
                    get_4(B_, B + m), get_4(C_, C + m);
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        int n = m + j;
                        float a = exp2_(HAS_SEQ ? fmaf(d[i], A[n], restart) : d[i] * A[n]);
                        float seen = B_[j] * g[n], whole = fmaf(C_[j], dy[i], g[n]);
                        Q_x[i] = fmaf(A[n], seen, Q_x[i]);
                        dA[n] = fmaf(-S_x, seen, dA[n]);
                        dx[i] = fmaf(B_[j], whole, dx[i]);
                        g[n] = a * whole;
                        v[j] = x * whole;
                    }
                    int matrix = i % ChannelSum::TOGETHER * (STATES / 4) + m / 4;
                    over_channels.add(dB_[i / ChannelSum::TOGETHER], matrix, v);
                }
            }
#pragma unroll
            for (int i = UNROLLED - 1; i >= 0; --i)                     // P - Q
                Q_x[i] = fmaf(-d[i] * u[i], Q_x[i], widen(tile[4 * TILE + (base + i) * CHANNELS + threadIdx.x]));
#pragma unroll
            for (int i = UNROLLED - 1; i >= 0; --i) {
                W += Q_x[i];
                float dd = fmaf(W, LN_2, u[i] * dx[i]) * slope[i], du = d[i] * dx[i];
                if (HAS_SKIP) du = fmaf(skip, dy[i], du), dskip = fmaf(dy[i], u[i], dskip);
                if (HAS_BIAS && first + base + i < at.end) dbias += dd;
                tile[(base + i) * CHANNELS + threadIdx.x] = narrow(du);
                tile[TILE + (base + i) * CHANNELS + threadIdx.x] = narrow(dd);
            }
#pragma unroll
            for (int i = 0; i < UNROLLED; i += ChannelSum::TOGETHER)
                ChannelSum::put(channel_sums + (base + i) * ChannelSum::A_STEP, dB_[i / ChannelSum::TOGETHER]);
        }
        __syncwarp();
        int left = Own::left(at, at.end - first);
        Own own(p, at, first);
        own.store(p.P, tile, p, left);
        own.store(p.ddelta, tile + TILE, p, left);
    }
    __syncthreads();
    ChannelSum::add_quads(at.of_block(p, p.dB), quads + (odd ^ 1) * ChannelSum::SIZE, at.start, at.end);
    store_rows_of_state(p.dA + at.of_chunk(p, at.k), dA, p, at);
    if (at.k == 0) store_state(p.grad_initial, g, p, at);
    if (at.inside) {
        long long to = ((long long)at.b * p.chunks + at.k) * p.channels + at.channel;
        if (HAS_SKIP) p.dskip[to] = dskip;
        if (HAS_BIAS) p.dbias[to] = dbias;
    }
}
#endif
