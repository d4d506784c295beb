// The selective scan in CUDA, compiled at run time by s6_cuda.py, which also says what the macros
// are. The recurrence stands in reference.py, the mathematics of the backward pass in docs/scan.md.
//
//     d = softplus(delta + bias)    x = d u    a = exp2(d A), A scaled by log2(e)
//     h_t = a_t h_{t-1} + x_t B_t              y_t = (sum_n C_t h_t + D u_t) silu(z_t)
//
// A lane owns a channel and STATES numbers of its state; a warp, 32 channels. Rows of u, delta, z
// and grad_y come by asynchronous copies into shared memory, tiles of ROWS steps, each warp its own.
// B and C of a tile are widened to float32 once for the block; every lane reads the same address.
// A restart is an addend of -inf to the exponent.
//
// Shapes: b sequence, k chunk, n state, d channel; L length, K chunks.

typedef unsigned short u16;

#if IO == 0
typedef float io;
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float narrow(float x) { return x; }
#else
typedef u16 io;
#if IO == 1
__device__ __forceinline__ float widen(u16 x) { return __uint_as_float((unsigned)x << 16); }
__device__ __forceinline__ u16 narrow(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#else
__device__ __forceinline__ float widen(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ __forceinline__ u16 narrow(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#endif
#endif

struct Arguments {
    const io *u, *delta, *z, *grad_y;
    const io *B, *C;
    const float *A, *bias, *skip, *initial, *grad_final;
    const int *seq;
    io *y, *dz, *du, *ddelta, *P;
    float *final, *states;                          // [b, d, n]; [b, k, n, d], before each chunk
    float *dB, *dC, *dA;                            // [b, block, t, n] twice; [b, k, n, d]
    float *span_states, *span_steps;                // [b, span, n, d]; [b, span, d]
    float *entries, *decays, *exits;                // [b, k, n, d]: of the adjoint
    float *dskip, *dbias, *grad_initial;            // [b, k, d] twice; [b, d, n]
    long long u_batch, u_row, delta_batch, delta_row, z_batch, z_row, dy_batch, dy_row;
    long long B_batch, B_row, B_group, C_batch, C_row, C_group;
    int length, channels, per_group, n, chunks, chunk_length, blocks, group_blocks;
};

constexpr int THREADS = WARPS * 32;
constexpr int LOADERS = HELPERS ? HELPERS * 32 : THREADS;               // threads that copy
constexpr int UNROLLED = UNROLL;                    // pragmas know no macros
constexpr int TOTAL = SPLIT * STATES;               // states of a block
constexpr int WIDTH = 2 * TOTAL + 4;                // of a row of weights: B, C, restart
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// --- arithmetic -------------------------------------------------------------------------------

__device__ __forceinline__ float exp2_(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + exp2_(-LOG2_E * x)); }

// softplus(x) and its derivative. With e = exp(-|x|), log(1 + e) = 2 artanh(e / (2 + e)) by a
// polynomial of relative error 2e-7: small steps keep their precision.
__device__ __forceinline__ float softplus(float x, float &slope) {
    float e = exp2_(-LOG2_E * fabsf(x));
    float s = e * reciprocal(2.0f + e), q = s * s;
    float p = fmaf(q, 0.3422245383262634f, 0.3959006071090698f);
    p = s * fmaf(q, fmaf(q, p, 0.6667597889900208f), 1.9999996423721313f);
    float r = reciprocal(1.0f + e);
    slope = x >= 0.0f ? r : e * r;
    return fmaxf(x, 0.0f) + p;
}

__device__ __forceinline__ float step_size(io delta, float bias, bool there, float &slope) {
    float d = widen(delta) + bias;
    slope = 1.0f;
    if (SOFTPLUS) d = softplus(d, slope);
    return there ? d : 0.0f;                        // a step of size 0 changes nothing
}

// --- copies -----------------------------------------------------------------------------------

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// A barrier of the helpers alone.
__device__ __forceinline__ void helpers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(HELPERS * 32) : "memory"); }

template <int PENDING> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// COUNT rows of WIDE channels, by THREADS_ consecutive threads; zeros where there are none.
template <int COUNT, int WIDE, int SHARERS>
__device__ __forceinline__ void copy_tile(io *to, const io *from, long long row, int rows, int channels) {
    constexpr int VECTOR = 16 / sizeof(io), A_ROW = WIDE / VECTOR, ALL = COUNT * A_ROW;
#pragma unroll
    for (int j = 0; j < ALL; j += SHARERS) {
        int i = j + threadIdx.x % SHARERS, r = i / A_ROW, c = i % A_ROW * VECTOR;
        bool there = r < rows && c < channels;
        if (ALL % SHARERS == 0 || i < ALL) {
            unsigned address = (unsigned)__cvta_generic_to_shared(to + r * WIDE + c);
            const io *source = there ? from + r * row + c : from;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source),
                         "r"(there ? 16 : 0)
                         : "memory");
        }
    }
}

// The way back for a warp's 32 channels; its lanes must have met after writing them.
template <int COUNT, int WIDE>
__device__ __forceinline__ void store_rows(io *to, const io *from, long long row, int rows, int channels) {
    constexpr int VECTOR = 16 / sizeof(io), A_ROW = 32 / VECTOR, AT_ONCE = 32 / A_ROW;
    int lane = threadIdx.x % 32, c = lane % A_ROW * VECTOR;
#pragma unroll
    for (int i = 0; i < COUNT; i += AT_ONCE) {
        int r = i + lane / A_ROW;
        if ((COUNT % AT_ONCE == 0 || r < COUNT) && r < rows && c < channels)
            *(float4 *)(to + r * row + c) = *(const float4 *)(from + r * WIDE + c);
    }
}

// B, C and restarts of a tile: fetched into registers early, widened into shared memory late.
struct Weights {
    static constexpr int COLUMNS = 2 * TOTAL, NUMBERS = ROWS * COLUMNS, EACH = (NUMBERS + LOADERS - 1) / LOADERS;
    static_assert(LOADERS % COLUMNS == 0, "a thread keeps to a column");
    static __device__ __forceinline__ int me() { return threadIdx.x % LOADERS; }
    const io *from;
    const int *seq;
    long long row;
    int first, length;
    bool there;
    io raw[EACH];
    float restart;

    // At the tile that starts with step `t`.
    __device__ __forceinline__ Weights(const Arguments &p, int b, int group, int t) {
        int column = me() % COLUMNS, n = column % TOTAL;
        bool is_B = column < TOTAL;
        row = is_B ? p.B_row : p.C_row;
        first = t, length = p.length, there = n < p.n;
        from = (is_B ? p.B + b * p.B_batch + group * p.B_group : p.C + b * p.C_batch + group * p.C_group) + n +
               (t + me() / COLUMNS) * row;
        seq = HAS_SEQ ? p.seq + (long long)b * p.length : nullptr;
    }

    __device__ __forceinline__ void fetch(int by) {
        int t = first + me() / COLUMNS;
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            int step = j * (LOADERS / COLUMNS);
            bool valid = there && t + step >= 0 && t + step < length && (NUMBERS % LOADERS == 0 || me() < NUMBERS);
            raw[j] = valid ? from[step * row] : io(0);
        }
        if (HAS_SEQ) {
            int at = first + me();
            bool valid = me() < ROWS && at > 0 && at < length;
            restart = valid && seq[at] != seq[at - 1] ? __int_as_float(0xff800000) : 0.0f;
        }
        from += by * row, first += by;
    }

    __device__ __forceinline__ void put(float *weights) {
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            int at = (j * (LOADERS / COLUMNS) + me() / COLUMNS) * WIDTH + me() % COLUMNS;
            if (NUMBERS % LOADERS == 0 || me() < NUMBERS) weights[at] = widen(raw[j]);
        }
        if (HAS_SEQ && me() < ROWS) weights[me() * WIDTH + 2 * TOTAL] = restart;
    }

};

// Four numbers from a 16-byte boundary.
__device__ __forceinline__ void get_4(float *to, const float *from) {
    float4 w = *(const float4 *)from;
    to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
}

// --- sums over the channels of a warp -----------------------------------------------------------

// Sums STATES numbers of each lane over the four lanes of a quad, with matrix instructions, which
// have nothing else to do here: as the left matrix four numbers a lane, as the right one a matrix
// that says into which columns they go. Only the upper 10 bits of a mantissa count there; float32
// is summed in two parts. `add_quads` sums the rest.
struct ChannelSum {
    static constexpr int A_STEP = WARPS * 8 * STATES + 16;              // floats; 16 against bank conflicts
    unsigned even[STATES / 4], odd[STATES / 4];

    __device__ __forceinline__ ChannelSum() {
        int quad = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < STATES / 4; ++i) {
            even[i] = quad == 2 * i ? 0x3f800000u : 0u;
            odd[i] = quad == 2 * i + 1 ? 0x3f800000u : 0u;
        }
    }

    static __device__ __forceinline__ unsigned upper(float x) { return __float_as_uint(x) & 0xffffe000u; }
    static __device__ __forceinline__ unsigned lower(float x) {
        return __float_as_uint(x - __uint_as_float(upper(x)));
    }

    static __device__ __forceinline__ void product(float4 &c, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                                   unsigned b0, unsigned b1) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w)
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }

    // Adds numbers 4 i .. 4 i + 3: to lane j of a quad those with i = j.
    __device__ __forceinline__ void add(float4 &sums, int i, const float (&v)[4]) const {
        if (IO == 0) {
            product(sums, lower(v[0]), lower(v[2]), lower(v[1]), lower(v[3]), even[i], odd[i]);
            product(sums, upper(v[0]), upper(v[2]), upper(v[1]), upper(v[3]), even[i], odd[i]);
        } else {
            product(sums, __float_as_uint(v[0]), __float_as_uint(v[2]), __float_as_uint(v[1]),
                    __float_as_uint(v[3]), even[i], odd[i]);
        }
    }

    // Leaves a step's sums in shared memory: [WARPS, 8 quads, STATES].
    static __device__ __forceinline__ void put(float *step, const float4 &sums) {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        if (STATES == 16 || lane % 4 < STATES / 4)
            *(float4 *)(step + (warp * 8 + lane / 4) * STATES + lane % 4 * 4) = sums;
    }

    // Rows first .. of a [t, n] array, from what the block's warps left.
    static __device__ __forceinline__ void add_quads(float *to, const float *steps, int first, int end) {
#pragma unroll
        for (int i = threadIdx.x; i < ROWS * STATES; i += THREADS) {
            float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            const float *from = steps + i / STATES * A_STEP + i % STATES;
#pragma unroll
            for (int j = 0; j < WARPS * 8; ++j) sum[j % 4] += from[j * STATES];
            if (first + i / STATES < end) to[(long long)first * STATES + i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
    }
};

// --- where a thread works -----------------------------------------------------------------------

struct Place {
    int b, k, block, group, channel, channels, start, end;      // channels: how many of the warp's there are
    bool inside;

    // `run`: which of the block's RUNS_ times 32 channels.
    __device__ __forceinline__ Place(const Arguments &p, int run, int runs, bool chunked) {
        int at = blockIdx.x, lane = threadIdx.x % 32;
        block = at % p.blocks, at /= p.blocks;
        k = chunked ? at % p.chunks : 0, b = chunked ? at / p.chunks : at;
        start = k * p.chunk_length;
        end = chunked ? min(start + p.chunk_length, p.length) : p.length;
        group = block / p.group_blocks;
        int base = (block % p.group_blocks * runs + run) * 32;
        channels = p.per_group - base;
        channel = group * p.per_group + base + lane;
        inside = lane < channels;
    }

    __device__ __forceinline__ int of_block() const { return channel - (int)threadIdx.x; }      // where run = warp
    __device__ __forceinline__ int channels_of_block() const { return channels + (int)threadIdx.x / 32 * 32; }
    __device__ __forceinline__ int first() const { return channel - (int)threadIdx.x % 32; }
    __device__ __forceinline__ long long of_row(const Arguments &p, int t) const {
        return ((long long)b * p.length + t) * p.channels + first();
    }
    __device__ __forceinline__ long long of_chunk(const Arguments &p) const {
        return ((long long)b * p.chunks + k) * STATES * p.channels + channel;
    }
    __device__ __forceinline__ long long span(const Arguments &p, int after) const {
        return (long long)b * ((p.length + SPAN - 1) / SPAN) + (after - 1) / SPAN;
    }
};

__device__ __forceinline__ void load_A(float (&A)[STATES], const Arguments &p, const Place &at, int first) {
#pragma unroll
    for (int n = 0; n < STATES; ++n)
        A[n] = at.inside && first + n < p.n ? LOG2_E * p.A[(long long)at.channel * p.n + first + n] : 0.0f;
}

// --- forward ------------------------------------------------------------------------------------

#ifdef FORWARD
// A block has two kinds of warps. Scanning warps do the recurrence and nothing else: RUNS times 32
// channels, the states of a channel split over SPLIT warps so that few channels fill the GPU, too.
// While they scan a tile, the HELPERS prepare the next (copies, step sizes, inputs) and finish the
// one before (sum over the split, skip, gate). One barrier a tile.
constexpr int RUNS = WARPS / SPLIT, CHANNELS = RUNS * 32, AHEAD = STAGES - 3;
constexpr int STEPS = RUNS * ROWS * 32, PARTS = WARPS * ROWS * 32, TILE = ROWS * CHANNELS;

extern "C" __global__ void __launch_bounds__((WARPS + HELPERS) * 32, BLOCKS)
forward(const __grid_constant__ Arguments p) {
    extern __shared__ float4 shared[];
    float2 *steps = (float2 *)shared;                                   // [2, RUNS, ROWS, 32]: d, x
    float *weights = (float *)(steps + 2 * STEPS);                      // [2, ROWS, WIDTH]
    float *parts = weights + 2 * ROWS * WIDTH;                          // [2, RUNS, SPLIT, ROWS, 32]
    io *rows = (io *)(parts + 2 * PARTS);                               // [STAGES, u delta z, ROWS, CHANNELS]
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tiles = (p.length + ROWS - 1) / ROWS;

    if (warp < WARPS) {
        int run = warp / SPLIT, part = warp % SPLIT;
        Place at(p, run, RUNS, false);
        float A[STATES], h[STATES];
        load_A(A, p, at, part * STATES);
        long long of_state = ((long long)at.b * p.channels + at.channel) * p.n + part * STATES;
#pragma unroll
        for (int n = 0; n < STATES; ++n)
            h[n] = p.initial && at.inside && part * STATES + n < p.n ? p.initial[of_state + n] : 0.0f;
        float *states = p.states + ((long long)at.b * p.chunks * TOTAL + part * STATES) * p.channels + at.channel;
        int next_chunk = 0;

        for (int tile = 0; tile < tiles; ++tile) {
            __syncthreads();
            if (tile * ROWS == next_chunk) {
                if (at.inside) {
#pragma unroll
                    for (int n = 0; n < STATES; ++n) states[(long long)n * p.channels] = h[n];
                }
                states += (long long)TOTAL * p.channels, next_chunk += p.chunk_length;
            }
            const float2 *step = steps + (tile & 1) * STEPS + run * ROWS * 32 + lane;
            const float *w = weights + (tile & 1) * ROWS * WIDTH + part * STATES;
            float *sums = parts + (tile & 1) * PARTS + warp * ROWS * 32 + lane;
#pragma unroll 1
            for (int first = 0; first < ROWS; first += UNROLLED) {      // loads, then stores: the one cannot pass the other
                float sum[UNROLLED];
#pragma unroll
                for (int i = 0; i < UNROLLED; ++i) {
                    float2 s = step[(first + i) * 32];
                    const float *B = w + (first + i) * WIDTH, *C = B + TOTAL;
                    float restart = HAS_SEQ ? B[2 * TOTAL - part * STATES] : 0.0f;
                    sum[i] = 0.0f;
#pragma unroll
                    for (int m = 0; m < STATES; m += 4) {
                        float B_[4], C_[4];
                        get_4(B_, B + m), get_4(C_, C + m);
#pragma unroll
                        for (int j = 0; j < 4; ++j) {
                            float a = exp2_(HAS_SEQ ? fmaf(s.x, A[m + j], restart) : s.x * A[m + j]);
                            h[m + j] = fmaf(a, h[m + j], s.y * B_[j]);
                            sum[i] = fmaf(C_[j], h[m + j], sum[i]);
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < UNROLLED; ++i) sums[(first + i) * 32] = sum[i];
            }
        }
        __syncthreads();
        if (at.inside) {
#pragma unroll
            for (int n = 0; n < STATES; ++n)
                if (part * STATES + n < p.n) p.final[of_state + n] = h[n];
        }
    } else {
        // a helper's rows: OWN of each of EACH runs
        constexpr int EACH = RUNS > HELPERS ? RUNS / HELPERS : 1, SHARERS = HELPERS > RUNS ? HELPERS / RUNS : 1;
        constexpr int OWN = ROWS / SHARERS, TOGETHER = OWN < 8 ? OWN : 8;
        int helper = warp - WARPS, first_run = helper / SHARERS * EACH, first_row = helper % SHARERS * OWN;
        Place at(p, 0, RUNS, false);                                    // channels: of the whole block
        float bias[EACH], skip[EACH];
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            int c = (first_run + e) * 32 + lane;
            bias[e] = HAS_BIAS && c < at.channels ? p.bias[at.first() + c] : 0.0f;
            skip[e] = HAS_SKIP && c < at.channels ? p.skip[at.first() + c] : 0.0f;
        }
        const io *u = p.u + at.b * p.u_batch + at.first(), *delta = p.delta + at.b * p.delta_batch + at.first();
        const io *z = p.z + at.b * p.z_batch + at.first();
        io *y = p.y + (long long)at.b * p.length * p.channels + at.first();
        Weights next(p, at.b, at.group, 0);

        auto copy = [&](int tile) {
            io *to = rows + tile % STAGES * 3 * TILE;
            int t = tile * ROWS, left = p.length - t;
            copy_tile<ROWS, CHANNELS, HELPERS * 32>(to, u + t * p.u_row, p.u_row, left, at.channels);
            copy_tile<ROWS, CHANNELS, HELPERS * 32>(to + TILE, delta + t * p.delta_row, p.delta_row, left, at.channels);
            if (HAS_Z) copy_tile<ROWS, CHANNELS, HELPERS * 32>(to + 2 * TILE, z + t * p.z_row, p.z_row, left, at.channels);
            copy_commit();
        };
        auto prepare = [&](int tile) {
            const io *own = rows + tile % STAGES * 3 * TILE + first_row * CHANNELS + first_run * 32 + lane;
            float2 *to = steps + (tile & 1) * STEPS + (first_run * ROWS + first_row) * 32 + lane;
#pragma unroll
            for (int e = 0; e < EACH; ++e) {
#pragma unroll 1
                for (int first = 0; first < OWN; first += TOGETHER) {
                    float2 step[TOGETHER];
#pragma unroll
                    for (int i = 0; i < TOGETHER; ++i) {
                        bool there = tile * ROWS + first_row + first + i < p.length;
                        const io *at_row = own + (first + i) * CHANNELS + e * 32;
                        float slope, d = step_size(at_row[TILE], bias[e], there, slope);
                        step[i] = {d, d * widen(at_row[0])};
                    }
#pragma unroll
                    for (int i = 0; i < TOGETHER; ++i) to[(e * ROWS + first + i) * 32] = step[i];
                }
            }
        };
        auto finish = [&](int tile) {
            io *own = rows + tile % STAGES * 3 * TILE + first_row * CHANNELS + first_run * 32 + lane;
            const float *sums = parts + (tile & 1) * PARTS + (first_run * SPLIT * ROWS + first_row) * 32 + lane;
#pragma unroll
            for (int e = 0; e < EACH; ++e) {
#pragma unroll 1
                for (int first = 0; first < OWN; first += TOGETHER) {
                    float sum[TOGETHER];
#pragma unroll
                    for (int i = 0; i < TOGETHER; ++i) {
                        const io *at_row = own + (first + i) * CHANNELS + e * 32;
                        sum[i] = HAS_SKIP ? skip[e] * widen(at_row[0]) : 0.0f;
#pragma unroll
                        for (int s = 0; s < SPLIT; ++s) sum[i] += sums[((e * SPLIT + s) * ROWS + first + i) * 32];
                        if (HAS_Z) {
                            float z_t = widen(at_row[2 * TILE]);
                            sum[i] *= z_t * sigmoid(z_t);
                        }
                    }
#pragma unroll
                    for (int i = 0; i < TOGETHER; ++i) own[(first + i) * CHANNELS + e * 32] = narrow(sum[i]);
                }
                __syncwarp();
                int t = tile * ROWS + first_row, c = (first_run + e) * 32;
                store_rows<OWN, CHANNELS>(y + (long long)t * p.channels + c, own - lane + e * 32, p.channels,
                                          p.length - t, at.channels - c);
            }
        };

        for (int tile = 0; tile <= AHEAD; ++tile) copy(tile);
        copy_wait<AHEAD>();
        helpers_meet();
        next.fetch(ROWS);
        prepare(0);
        next.put(weights);
        copy_wait<AHEAD - 1>();
        for (int tile = 0; tile < tiles; ++tile) {
            __syncthreads();
            copy(tile + 1 + AHEAD);
            next.fetch(ROWS);
            prepare(tile + 1);
            if (tile) finish(tile - 1);
            next.put(weights + ((tile + 1) & 1) * ROWS * WIDTH);
            copy_wait<AHEAD - 1>();
        }
        __syncthreads();
        finish(tiles - 1);
    }
}
#endif

// --- backward -----------------------------------------------------------------------------------

#if defined(ALONG) || defined(AGAINST)
constexpr int CHANNELS = WARPS * 32, TILE = ROWS * CHANNELS, PARTS = ROWS * ChannelSum::A_STEP;

// Rows of u, delta, grad_y, z, a tensor a warp, so that a thread holds one pointer only.
struct Rows {
    const io *from;
    long long row;

    __device__ __forceinline__ Rows(const Arguments &p, const Place &at) {
        static_assert(WARPS == 4, "a warp for each of four tensors");
        int warp = threadIdx.x / 32;
        from = warp == 0 ? p.u : warp == 1 ? p.delta : warp == 2 ? p.grad_y : p.z;
        row = warp == 0 ? p.u_row : warp == 1 ? p.delta_row : warp == 2 ? p.dy_row : p.z_row;
        long long batch = warp == 0 ? p.u_batch : warp == 1 ? p.delta_batch : warp == 2 ? p.dy_batch : p.z_batch;
        from += at.b * batch + at.of_block();
    }

    __device__ __forceinline__ void copy(io *to, int first, const Place &at) const {
        int warp = threadIdx.x / 32;
        if (HAS_Z || warp < 3)
            copy_tile<ROWS, CHANNELS, 32>(to + warp * TILE, from + first * row, row, at.end - first, at.channels_of_block());
    }
};
#endif

#ifdef ALONG
// Along time: dz, dC, P, a share of dA; h, the sum of steps and what was rounded off P at the end of
// every span; and, where there are chunks, what a chunk adds to the adjoint before it, and its decay.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) along(const __grid_constant__ Arguments p) {
    constexpr int TENSORS = 4;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Place at(p, warp, WARPS, true);

    extern __shared__ float4 shared[];
    float *weights = (float *)shared;                                   // [2, ROWS, WIDTH]
    float *parts = weights + 2 * ROWS * WIDTH;                          // [2, ROWS, A_STEP]
    io *rows = (io *)(parts + 2 * PARTS);                               // [2, u delta grad_y z, ROWS, CHANNELS]

    float A[STATES], h[STATES], dA[STATES], entry[STATES], decay[STATES];
    load_A(A, p, at, 0);
#pragma unroll
    for (int n = 0; n < STATES; ++n) {
        h[n] = at.inside ? p.states[at.of_chunk(p) + (long long)n * p.channels] : 0.0f;
        dA[n] = 0.0f, entry[n] = 0.0f, decay[n] = 1.0f;
    }
    float bias = HAS_BIAS && at.inside ? p.bias[at.channel] : 0.0f;
    float skip = HAS_SKIP && at.inside ? p.skip[at.channel] : 0.0f;
    float *dC = p.dC + ((long long)at.b * p.blocks + at.block) * p.length * STATES;

    Rows source(p, at);
    source.copy(rows, at.start, at);
    copy_commit();
    Weights next(p, at.b, at.group, at.start);
    next.fetch(ROWS);
    next.put(weights);
    ChannelSum channel_sum;
    float S = 0.0f, left_over = 0.0f;

    for (int first = at.start, odd = 0; first < at.end; first += ROWS, odd ^= 1) {
        copy_wait<0>();
        __syncthreads();
        source.copy(rows + (odd ^ 1) * TENSORS * TILE, first + ROWS, at);
        copy_commit();
        next.fetch(ROWS);
        if (first > at.start) ChannelSum::add_quads(dC, parts + (odd ^ 1) * PARTS, first - ROWS, at.end);
        io *own = rows + odd * TENSORS * TILE + threadIdx.x;
        const float *w = weights + odd * ROWS * WIDTH;
        float *sums = parts + odd * PARTS;
#pragma unroll 1
        for (int base = 0; base < ROWS; base += UNROLLED) {             // loads, then stores, as above
            float d[UNROLLED], x[UNROLLED], dy[UNROLLED], dz_dy[UNROLLED], y[UNROLLED], sum[UNROLLED];
            float4 over_channels[UNROLLED];
#pragma unroll
            for (int i = 0; i < UNROLLED; ++i) {
                const io *at_row = own + (base + i) * CHANNELS;
                float slope, u_t = widen(at_row[0]);
                d[i] = step_size(at_row[TILE], bias, first + base + i < at.end, slope);
                dy[i] = widen(at_row[2 * TILE]);
                if (HAS_Z) {
                    float z_t = widen(at_row[3 * TILE]), s = sigmoid(z_t);
                    dz_dy[i] = dy[i] * s * fmaf(z_t, 1.0f - s, 1.0f);
                    dy[i] *= z_t * s;
                }
                x[i] = d[i] * u_t;
                y[i] = HAS_SKIP ? skip * u_t : 0.0f, sum[i] = 0.0f;
                over_channels[i] = {0.0f, 0.0f, 0.0f, 0.0f};
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
                        sum[i] = fmaf(A[n], seen, sum[i]);
                        dA[n] = fmaf(S_dy, seen, dA[n]);
                        if (HAS_Z) y[i] = fmaf(C_[j], h[n], y[i]);
                        v[j] = dy[i] * h[n];
                        if (CHUNKED) {
                            decay[n] *= a;
                            entry[n] = fmaf(decay[n], C_[j] * dy[i], entry[n]);
                        }
                    }
                    channel_sum.add(over_channels[i], m / 4, v);
                }
            }
#pragma unroll
            for (int i = 0; i < UNROLLED; ++i) {
                ChannelSum::put(sums + (base + i) * ChannelSum::A_STEP, over_channels[i]);
                // what is rounded off goes into the next step's P: sums of P stay exact to one rounding
                float exact = fmaf(dy[i], sum[i], left_over);
                io rounded = narrow(exact);
                left_over = exact - widen(rounded);
                own[(base + i) * CHANNELS] = rounded;
                if (HAS_Z) own[TILE + (base + i) * CHANNELS] = narrow(dz_dy[i] * y[i]);
            }
        }
        __syncwarp();
        long long row = at.of_row(p, first);
        store_rows<ROWS, CHANNELS>(p.P + row, own - lane, p.channels, at.end - first, at.channels);
        if (HAS_Z) store_rows<ROWS, CHANNELS>(p.dz + row, own - lane + TILE, p.channels, at.end - first, at.channels);
        next.put(weights + (odd ^ 1) * ROWS * WIDTH);
        int after = first + ROWS;
        if ((after % SPAN == 0 || after >= at.end) && at.inside) {
            long long span = at.span(p, after);
            p.span_steps[2 * span * p.channels + at.channel] = S;
            p.span_steps[(2 * span + 1) * p.channels + at.channel] = left_over;
#pragma unroll
            for (int n = 0; n < STATES; ++n)
                p.span_states[(span * STATES + n) * p.channels + at.channel] = h[n];
            S = 0.0f, left_over = 0.0f;
        }
    }
    __syncthreads();
    int last = at.start + (at.end - at.start - 1) / ROWS * ROWS;
    ChannelSum::add_quads(dC, parts + (last - at.start) / ROWS % 2 * PARTS, last, at.end);
    if (at.inside) {
        long long to = at.of_chunk(p);
#pragma unroll
        for (int n = 0; n < STATES; ++n) {
            p.dA[to + (long long)n * p.channels] = dA[n];
            if (CHUNKED) {
                p.entries[to + (long long)n * p.channels] = entry[n];
                p.decays[to + (long long)n * p.channels] = decay[n];
            }
        }
    }
}

// The adjoint after each chunk, from that after the last.
extern "C" __global__ void carry(const __grid_constant__ Arguments p) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, size = (long long)STATES * p.channels;
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
// Against time: du, ddelta, dB, the rest of dA, the sums over time of dD and dbias.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) against(const __grid_constant__ Arguments p) {
    constexpr int TENSORS = 5;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Place at(p, warp, WARPS, true);

    extern __shared__ float4 shared[];
    float *weights = (float *)shared;                                   // [2, ROWS, WIDTH]
    float *parts = weights + 2 * ROWS * WIDTH;                          // [2, ROWS, A_STEP]
    io *rows = (io *)(parts + 2 * PARTS);                               // [2, u delta grad_y z P, ROWS, CHANNELS]

    float A[STATES], g[STATES], dA[STATES];
    load_A(A, p, at, 0);
    long long of_state = ((long long)at.b * p.channels + at.channel) * p.n;
#pragma unroll
    for (int n = 0; n < STATES; ++n) {
        long long of_chunk = at.of_chunk(p) + (long long)n * p.channels;
        g[n] = 0.0f;
        if (CHUNKED && at.inside) g[n] = p.exits[of_chunk];
        if (!CHUNKED && at.inside && p.grad_final && n < p.n) g[n] = p.grad_final[of_state + n];
        dA[n] = at.inside ? p.dA[of_chunk] : 0.0f;
    }
    float bias = HAS_BIAS && at.inside ? p.bias[at.channel] : 0.0f;
    float skip = HAS_SKIP && at.inside ? p.skip[at.channel] : 0.0f;
    float dskip = 0.0f, dbias = 0.0f, S = 0.0f, W = 0.0f;
    float *dB = p.dB + ((long long)at.b * p.blocks + at.block) * p.length * STATES;

    Rows source(p, at);
    auto copy = [&](int first, int odd) {
        io *to = rows + odd * TENSORS * TILE;
        if (first >= at.start) {
            source.copy(to, first, at);
            copy_tile<ROWS, CHANNELS, THREADS>(to + 4 * TILE, p.P + at.of_row(p, first) - warp * 32, p.channels,
                                               at.end - first, at.channels_of_block());
        }
        copy_commit();
    };
    int last = at.start + (at.end - at.start - 1) / ROWS * ROWS, odd = 0;
    copy(last, odd);
    Weights next(p, at.b, at.group, last);
    next.fetch(-ROWS);
    next.put(weights);
    ChannelSum channel_sum;

    for (int first = last; first >= at.start; first -= ROWS, odd ^= 1) {
        copy_wait<0>();
        __syncthreads();
        copy(first - ROWS, odd ^ 1);
        next.fetch(-ROWS);
        if (first < last) ChannelSum::add_quads(dB, parts + (odd ^ 1) * PARTS, first + ROWS, at.end);
        if ((first + ROWS) % SPAN == 0 || first == last) {
            long long span = at.span(p, first + ROWS);
            S = at.inside ? p.span_steps[2 * span * p.channels + at.channel] : 0.0f;
            W = at.inside ? p.span_steps[(2 * span + 1) * p.channels + at.channel] : 0.0f;
#pragma unroll
            for (int n = 0; n < STATES; ++n) {
                float h = at.inside ? p.span_states[(span * STATES + n) * p.channels + at.channel] : 0.0f;
                W = fmaf(A[n], g[n] * h, W);
                dA[n] = fmaf(S, g[n] * h, dA[n]);
            }
        }
        io *own = rows + odd * TENSORS * TILE + threadIdx.x;
        const float *w = weights + odd * ROWS * WIDTH;
        float *sums = parts + odd * PARTS;
#pragma unroll 1
        for (int base = ROWS - UNROLLED; base >= 0; base -= UNROLLED) {
            float d[UNROLLED], slope[UNROLLED], u_[UNROLLED], dy[UNROLLED], P[UNROLLED], sum[UNROLLED], dx[UNROLLED];
            float restart[UNROLLED];
            float4 over_channels[UNROLLED];
#pragma unroll
            for (int i = UNROLLED - 1; i >= 0; --i) {
                const io *at_row = own + (base + i) * CHANNELS;
                u_[i] = widen(at_row[0]);
                d[i] = step_size(at_row[TILE], bias, first + base + i < at.end, slope[i]);
                dy[i] = widen(at_row[2 * TILE]);
                if (HAS_Z) {
                    float z_t = widen(at_row[3 * TILE]);
                    dy[i] *= z_t * sigmoid(z_t);
                }
                P[i] = widen(at_row[4 * TILE]);
                sum[i] = 0.0f, dx[i] = 0.0f;
                over_channels[i] = {0.0f, 0.0f, 0.0f, 0.0f};
            }
#pragma unroll
            for (int i = UNROLLED - 1; i >= 0; --i) {
                const float *B = w + (base + i) * WIDTH, *C = B + TOTAL;
                restart[i] = HAS_SEQ ? B[2 * TOTAL] : 0.0f;
                float x = d[i] * u_[i], S_x = S * x;
                S -= d[i];
#pragma unroll
                for (int m = 0; m < STATES; m += 4) {
                    float B_[4], C_[4], v[4];
                    get_4(B_, B + m), get_4(C_, C + m);
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        int n = m + j;
                        float a = exp2_(HAS_SEQ ? fmaf(d[i], A[n], restart[i]) : d[i] * A[n]);
                        float seen = B_[j] * g[n], whole = fmaf(C_[j], dy[i], g[n]);
                        sum[i] = fmaf(A[n], seen, sum[i]);
                        dA[n] = fmaf(-S_x, seen, dA[n]);
                        dx[i] = fmaf(B_[j], whole, dx[i]);
                        g[n] = a * whole;
                        v[j] = x * whole;
                    }
                    channel_sum.add(over_channels[i], m / 4, v);
                }
            }
#pragma unroll
            for (int i = UNROLLED - 1; i >= 0; --i) {
                ChannelSum::put(sums + (base + i) * ChannelSum::A_STEP, over_channels[i]);
                W += fmaf(-d[i] * u_[i], sum[i], P[i]);
                if (HAS_SEQ && restart[i] != 0.0f) W = 0.0f;
                float dd = fmaf(W, LN_2, u_[i] * dx[i]) * slope[i], du_t = d[i] * dx[i];
                if (HAS_SKIP) du_t = fmaf(skip, dy[i], du_t), dskip = fmaf(dy[i], u_[i], dskip);
                if (HAS_BIAS && first + base + i < at.end) dbias += dd;
                own[(base + i) * CHANNELS] = narrow(du_t);
                own[TILE + (base + i) * CHANNELS] = narrow(dd);
            }
        }
        __syncwarp();
        long long row = at.of_row(p, first);
        store_rows<ROWS, CHANNELS>(p.du + row, own - lane, p.channels, at.end - first, at.channels);
        store_rows<ROWS, CHANNELS>(p.ddelta + row, own - lane + TILE, p.channels, at.end - first, at.channels);
        next.put(weights + (odd ^ 1) * ROWS * WIDTH);
    }
    __syncthreads();
    ChannelSum::add_quads(dB, parts + (odd ^ 1) * PARTS, at.start, at.end);
    if (at.inside) {
        long long of_block = ((long long)at.b * p.chunks + at.k) * p.channels + at.channel;
        if (HAS_SKIP) p.dskip[of_block] = dskip;
        if (HAS_BIAS) p.dbias[of_block] = dbias;
#pragma unroll
        for (int n = 0; n < STATES; ++n) {
            p.dA[at.of_chunk(p) + (long long)n * p.channels] = dA[n];
            if (at.k == 0 && n < p.n) p.grad_initial[of_state + n] = g[n];
        }
    }
}
#endif
