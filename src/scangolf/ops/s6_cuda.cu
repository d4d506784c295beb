// The selective scan in CUDA, compiled at run time by s6_cuda.py, which also says what the macros
// are. The recurrence stands in reference.py, the mathematics of the backward pass in docs/scan.md.
//
//     d = softplus(delta + bias)    x = d u    a = exp2(d A), A scaled by log2(e)
//     h_t = a_t h_{t-1} + x_t B_t              y_t = (sum_n C_t h_t + D u_t) silu(z_t)
//
// A block has RUNS times 32 channels of one sequence, and two kinds of warps. Four scanning warps do
// the recurrence and nothing else: a lane has a channel and STATES numbers of its state, which is
// split over SPLIT warps so that few channels fill the GPU, too. While they go through a tile of ROWS
// steps, four helping warps prepare the next (copies, step sizes, inputs) and finish the one before
// (sums over the split, gates, stores). One barrier a tile; all that they share is in shared memory.
//
// In the scanning loops a group of UNROLL steps loads first and stores last: shared memory is one
// array to the compiler, which would not move a load across a store.
//
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
    io *y, *dz, *ddelta, *P;                        // P: in the end, du
    float *final, *states;                          // [b, d, n]; [b, k, n, d], before each chunk
    float *dB, *dC, *dA;                            // [b, block, t, n] twice; [b, k, n, d]
    float *span_states, *span_sums;                 // [b, span, n, d]; [b, span, 2, d]
    float *entries, *decays, *exits;                // [b, k, n, d]: of the adjoint
    float *dskip, *dbias, *grad_initial;            // [b, k, d] twice; [b, d, n]
    long long u_batch, delta_batch, z_batch, dy_batch, B_batch, B_group, C_batch, C_group;
    int u_row, delta_row, z_row, dy_row, B_row, C_row;
    int length, channels, per_group, n, chunks, chunk_length, blocks, group_blocks;
};

constexpr int WARPS = 4, HELPERS = 32 * WARPS;          // scanning warps; helping threads, as many
constexpr int RUNS = WARPS / SPLIT, CHANNELS = 32 * RUNS;
constexpr int TOTAL = SPLIT * STATES;                   // states of a block
constexpr int WIDTH = 2 * TOTAL + 4;                    // of a row of weights: B, C, restart
constexpr int OWN = ROWS / SPLIT;                       // rows of a tile that a helping warp prepares
constexpr int TOGETHER = OWN < 8 ? OWN : 8;             // of these at a time
constexpr int TILE = ROWS * CHANNELS, STEPS = RUNS * ROWS * 32, PARTS = WARPS * ROWS * 32;
constexpr int UNROLLED = UNROLL;                        // pragmas know no macros
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
__device__ __forceinline__ void helpers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(HELPERS) : "memory"); }

template <int PENDING> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// 16 bytes into shared memory; zeros if they are not there.
__device__ __forceinline__ void copy_16(io *to, const io *from, bool there) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// The way back, for a helping warp's rows and channels; its lanes must have met after writing them.
__device__ __forceinline__ void store_rows(io *to, const io *from, long long row, int rows, int channels) {
    constexpr int VECTOR = 16 / sizeof(io), A_ROW = 32 / VECTOR, AT_ONCE = 32 / A_ROW;
    int lane = threadIdx.x % 32, c = lane % A_ROW * VECTOR;
#pragma unroll
    for (int i = 0; i < OWN; i += AT_ONCE) {
        int r = i + lane / A_ROW;
        if ((OWN % AT_ONCE == 0 || r < OWN) && r < rows && c < channels)
            *(float4 *)(to + r * row + c) = *(const float4 *)(from + r * CHANNELS + c);
    }
}

// Four numbers from a 16-byte boundary.
__device__ __forceinline__ void get_4(float *to, const float *from) {
    float4 w = *(const float4 *)from;
    to[0] = w.x, to[1] = w.y, to[2] = w.z, to[3] = w.w;
}

// --- sums over the channels of a warp -----------------------------------------------------------

// Sums STATES numbers of each lane over the four lanes of a quad, with matrix instructions, which
// have nothing else to do here: as the left matrix four numbers a lane, as the right one a matrix
// that says into which columns they go. 16 numbers, of one step or of several, fill the columns.
// Only the upper 10 bits of a mantissa count there; float32 is summed in two parts. `add_quads`
// sums the rest.
struct ChannelSum {
    static constexpr int TOGETHER = 16 / STATES;                        // steps
    static constexpr int A_STEP = RUNS * 8 * TOTAL + (TOGETHER > 1 ? 16 : 0);    // floats; 16: bank conflicts
    static constexpr int SIZE = ROWS * A_STEP;
    unsigned even[4], odd[4];

    __device__ __forceinline__ ChannelSum() {
        int quad = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
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

    // Leaves the sums of TOGETHER steps in shared memory, a step [RUNS, 8 quads, TOTAL].
    static __device__ __forceinline__ void put(float *step, const float4 &sums) {
        constexpr int EACH = STATES / 4;                                // lanes of a quad with the same step
        int lane = threadIdx.x % 32, run = threadIdx.x / 32 / SPLIT, part = threadIdx.x / 32 % SPLIT, i = lane % 4;
        *(float4 *)(step + i / EACH * A_STEP + (run * 8 + lane / 4) * TOTAL + part * STATES + i % EACH * 4) = sums;
    }

    // Rows first .. of a [t, n] array, from what the warps left; by HELPERS threads, four of which
    // share four numbers.
    static __device__ __forceinline__ void add_quads(float *to, const float *steps, int first, int end) {
        constexpr int FOURS = TOTAL / 4, ALL = ROWS * TOTAL;
#pragma unroll
        for (int j = 0; j < ALL; j += HELPERS) {
            int i = j + threadIdx.x % HELPERS, n = i % FOURS * 4, share = i / FOURS % 4, step = i / TOTAL;
            if (ALL % HELPERS && i >= ALL) break;                       // whole warps: ALL is a multiple of 32
            float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
            const float *from = steps + step * A_STEP + share * TOTAL + n;
#pragma unroll
            for (int row = 0; row < RUNS * 8; row += 4) {
                float4 part = *(const float4 *)(from + row * TOTAL);
                sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
            }
            // halve the numbers, double what they are sums of, twice
            bool low = share < 2, even = share % 2 == 0;
            float x = (low ? sum.x : sum.z) + __shfl_xor_sync(~0u, low ? sum.z : sum.x, 2 * FOURS);
            float y = (low ? sum.y : sum.w) + __shfl_xor_sync(~0u, low ? sum.w : sum.y, 2 * FOURS);
            float z = (even ? x : y) + __shfl_xor_sync(~0u, even ? y : x, FOURS);
            if (first + step < end) to[(long long)(first + step) * TOTAL + n + share] = z;
        }
    }
};

// --- where a thread works -----------------------------------------------------------------------

struct Place {
    int b, k, block, group, start, end;
    int base, there;                                    // the block's first channel; how many there are
    int run, part, lane, channel;                       // of a warp, scanning or helping; of a lane
    bool inside;

    __device__ __forceinline__ Place(const Arguments &p, bool chunked) {
        int at = blockIdx.x, warp = threadIdx.x / 32 % WARPS;
        lane = threadIdx.x % 32, run = warp / SPLIT, part = warp % SPLIT;
        block = at % p.blocks, at /= p.blocks;
        k = chunked ? at % p.chunks : 0, b = chunked ? at / p.chunks : at;
        start = k * p.chunk_length;
        end = chunked ? min(start + p.chunk_length, p.length) : p.length;
        group = block / p.group_blocks;
        int before = block % p.group_blocks * CHANNELS;
        base = group * p.per_group + before, there = p.per_group - before;
        channel = base + run * 32 + lane;
        inside = run * 32 + lane < there;
    }

    __device__ __forceinline__ long long of_row(const Arguments &p, int t) const {      // the block's
        return ((long long)b * p.length + t) * p.channels + base;
    }
    __device__ __forceinline__ float *of_block(const Arguments &p, float *sums) const { // [b, block, t, n]
        return sums + ((long long)b * p.blocks + block) * p.length * TOTAL;
    }
    __device__ __forceinline__ long long of_state(const Arguments &p) const {           // [b, d, n]
        return ((long long)b * p.channels + channel) * p.n + part * STATES;
    }
    __device__ __forceinline__ long long of_chunk(const Arguments &p, int chunk) const {    // [b, k, n, d]
        return (((long long)b * p.chunks + chunk) * TOTAL + part * STATES) * p.channels + channel;
    }
    __device__ __forceinline__ long long span(const Arguments &p, int after) const {    // that ends before `after`
        return (long long)b * ((p.length + SPAN - 1) / SPAN) + (after - 1) / SPAN;
    }
    __device__ __forceinline__ bool ends_span(int after) const { return after % SPAN == 0 || after >= end; }
};

// B, C and restarts of a tile. They come into shared memory as they are, and are widened there a tile
// later: no register waits for them.
struct Weights {
    static constexpr int VECTOR = 16 / sizeof(io), A_ROW = TOTAL / VECTOR, NUMBERS = ROWS * 2 * TOTAL;
    static constexpr int SLOT = NUMBERS * sizeof(io) + (HAS_SEQ ? 4 * (ROWS + 4) : 0);   // bytes

    static __device__ __forceinline__ int me() { return threadIdx.x % HELPERS; }
    static __device__ __forceinline__ int *documents(char *slot) { return (int *)(slot + NUMBERS * sizeof(io)); }

    static __device__ __forceinline__ void copy(char *slot, const Arguments &p, const Place &at, int first) {
#pragma unroll
        for (int j = 0; j < ROWS * 2 * A_ROW; j += HELPERS) {
            int i = j + me(), row = i / (2 * A_ROW), column = i % (2 * A_ROW), t = first + row;
            if (i < ROWS * 2 * A_ROW) {
                bool there = (unsigned)t < (unsigned)p.length;
                const io *from = column < A_ROW ? p.B + at.b * p.B_batch + at.group * p.B_group + (long long)t * p.B_row
                                                : p.C + at.b * p.C_batch + at.group * p.C_group + (long long)t * p.C_row;
                copy_16((io *)slot + i * VECTOR, there ? from + column % A_ROW * VECTOR : p.B, there);
            }
        }
        if (HAS_SEQ && me() <= ROWS) {
            int t = first - 1 + me();
            bool there = (unsigned)t < (unsigned)p.length;
            unsigned address = (unsigned)__cvta_generic_to_shared(documents(slot) + me());
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address),
                         "l"(p.seq + (there ? (long long)at.b * p.length + t : 0)), "r"(there ? 4 : 0)
                         : "memory");
        }
    }

    // Into [ROWS, WIDTH].
    static __device__ __forceinline__ void widen_into(float *weights, char *slot, const Arguments &p, int first) {
#pragma unroll
        for (int j = 0; j < NUMBERS; j += 2 * HELPERS) {
            int i = j + 2 * me();
            const io *raw = (const io *)slot + i;
            if (NUMBERS % (2 * HELPERS) == 0 || i < NUMBERS)
                *(float2 *)(weights + i / (2 * TOTAL) * WIDTH + i % (2 * TOTAL)) = {widen(raw[0]), widen(raw[1])};
        }
        if (HAS_SEQ && me() < ROWS) {
            int t = first + me();
            const int *document = documents(slot) + me();
            bool restart = t > 0 && t < p.length && document[1] != document[0];
            weights[me() * WIDTH + 2 * TOTAL] = restart ? __int_as_float(0xff800000) : 0.0f;
        }
    }
};

__device__ __forceinline__ void load_A(float (&A)[STATES], const Arguments &p, const Place &at) {
#pragma unroll
    for (int n = 0; n < STATES; ++n) {
        bool there = at.inside && at.part * STATES + n < p.n;
        A[n] = there ? LOG2_E * p.A[(long long)at.channel * p.n + at.part * STATES + n] : 0.0f;
    }
}

// STATES numbers of a [b, d, n] array, zeros where there are none.
__device__ __forceinline__ void load_state(float (&h)[STATES], const float *from, const Arguments &p, const Place &at) {
#pragma unroll
    for (int n = 0; n < STATES; ++n)
        h[n] = from && at.inside && at.part * STATES + n < p.n ? from[at.of_state(p) + n] : 0.0f;
}

__device__ __forceinline__ void store_state(float *to, const float (&h)[STATES], const Arguments &p, const Place &at) {
#pragma unroll
    for (int n = 0; n < STATES; ++n)
        if (at.inside && at.part * STATES + n < p.n) to[at.of_state(p) + n] = h[n];
}

// STATES rows of the lanes' channels.
__device__ __forceinline__ void load_rows(float (&h)[STATES], const float *from, const Arguments &p, const Place &at) {
#pragma unroll
    for (int n = 0; n < STATES; ++n) h[n] = at.inside ? from[(long long)n * p.channels] : 0.0f;
}

__device__ __forceinline__ void store_rows_of_state(float *to, const float (&h)[STATES], const Arguments &p, const Place &at) {
#pragma unroll
    for (int n = 0; n < STATES; ++n)
        if (at.inside) to[(long long)n * p.channels] = h[n];
}

// Rows of up to four tensors, a tensor a warp, so that a thread holds one pointer only.
struct Source {
    static constexpr int VECTOR = 16 / sizeof(io), A_ROW = CHANNELS / VECTOR, AT_ONCE = 32 / A_ROW;
    const io *from;                                                     // of the lane, in the next tile
    int row;

    static __device__ __forceinline__ int which() { return threadIdx.x / 32 % WARPS; }
    static __device__ __forceinline__ int lane_row() { return threadIdx.x % 32 / A_ROW; }
    static __device__ __forceinline__ int lane_channel() { return threadIdx.x % 32 % A_ROW * VECTOR; }

    __device__ __forceinline__ Source(const Arguments &p, const Place &at, int first) {
        int i = which();
        from = i == 0 ? p.u : i == 1 ? p.delta : i == 2 ? p.z : p.grad_y;
        row = i == 0 ? p.u_row : i == 1 ? p.delta_row : i == 2 ? p.z_row : p.dy_row;
        from += at.b * (i == 0 ? p.u_batch : i == 1 ? p.delta_batch : i == 2 ? p.z_batch : p.dy_batch);
        from += at.base + lane_channel() + (long long)(first + lane_row()) * row;
    }

    // A tile into [u delta z grad_y, ROWS, CHANNELS], of which `rows` are there; then on by `by` steps.
    __device__ __forceinline__ void copy(io *to, int rows, int by, const Place &at) {
        if (HAS_Z || which() != 2) {
            int left = (lane_channel() < at.there ? rows : 0) - lane_row();
            to += which() * TILE + lane_row() * CHANNELS + lane_channel();
#pragma unroll
            for (int i = 0; i < ROWS; i += AT_ONCE)
                if (AT_ONCE <= ROWS || lane_row() < ROWS) {
                    bool there = i < left;
                    copy_16(to + i * CHANNELS, there ? from + (long long)i * row : from, there);
                }
        }
        from += (long long)by * row;
    }
};

// --- forward ------------------------------------------------------------------------------------

#ifdef FORWARD
extern "C" __global__ void __launch_bounds__(32 * WARPS + HELPERS, BLOCKS) forward(const __grid_constant__ Arguments p) {
    constexpr int TENSORS = 3, STAGES = 4;                              // tiles: finished, scanned, prepared, copied
    extern __shared__ float4 shared[];
    float2 *steps = (float2 *)shared;                                   // [2, RUNS, ROWS, 32]: d, x
    float *weights = (float *)(steps + 2 * STEPS);                      // [2, ROWS, WIDTH]
    float *parts = weights + 2 * ROWS * WIDTH;                          // [2, RUNS, SPLIT, ROWS, 32]: of y
    io *rows = (io *)(parts + 2 * PARTS);                               // [STAGES, u delta z, ROWS, CHANNELS]
    char *raw = (char *)(rows + STAGES * TENSORS * TILE);               // [2, SLOT]
    Place at(p, false);
    int tiles = (p.length + ROWS - 1) / ROWS;

    if (threadIdx.x < 32 * WARPS) {
        float A[STATES], h[STATES];
        load_A(A, p, at);
        load_state(h, p.initial, p, at);
        float *states = p.states + at.of_chunk(p, 0);
        int next_chunk = 0;

        for (int tile = 0; tile < tiles; ++tile) {
            __syncthreads();
            if (tile * ROWS == next_chunk) {
                store_rows_of_state(states, h, p, at);
                states += (long long)TOTAL * p.channels, next_chunk += p.chunk_length;
            }
            const float2 *step = steps + (tile & 1) * STEPS + at.run * ROWS * 32 + at.lane;
            const float *w = weights + (tile & 1) * ROWS * WIDTH;
            float *sums = parts + (tile & 1) * PARTS + threadIdx.x / 32 * ROWS * 32 + at.lane;
#pragma unroll 1
            for (int base = 0; base < ROWS; base += UNROLLED) {
                float sum[UNROLLED];
#pragma unroll
                for (int i = 0; i < UNROLLED; ++i) {
                    float2 s = step[(base + i) * 32];
                    const float *B = w + (base + i) * WIDTH + at.part * STATES, *C = B + TOTAL;
                    float restart = HAS_SEQ ? w[(base + i) * WIDTH + 2 * TOTAL] : 0.0f;
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
                for (int i = 0; i < UNROLLED; ++i) sums[(base + i) * 32] = sum[i];
            }
        }
        __syncthreads();
        store_state(p.final, h, p, at);
    } else {
        float bias = HAS_BIAS && at.inside ? p.bias[at.channel] : 0.0f;
        float skip = HAS_SKIP && at.inside ? p.skip[at.channel] : 0.0f;
        int first_row = at.part * OWN, mine = first_row * CHANNELS + at.run * 32 + at.lane;
        Source source(p, at, 0);

        auto copy = [&](int tile) {
            if (threadIdx.x / 32 % WARPS < TENSORS)
                source.copy(rows + tile % STAGES * TENSORS * TILE, p.length - tile * ROWS, ROWS, at);
            Weights::copy(raw + (tile & 1) * Weights::SLOT, p, at, tile * ROWS);
            copy_commit();
        };
        auto prepare = [&](int tile) {
            Weights::widen_into(weights + (tile & 1) * ROWS * WIDTH, raw + (tile & 1) * Weights::SLOT, p, tile * ROWS);
            const io *own = rows + tile % STAGES * TENSORS * TILE + mine;
            float2 *to = steps + (tile & 1) * STEPS + (at.run * ROWS + first_row) * 32 + at.lane;
#pragma unroll 1
            for (int base = 0; base < OWN; base += TOGETHER) {
                float2 step[TOGETHER];
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) {
                    const io *row = own + (base + i) * CHANNELS;
                    float slope, d = step_size(row[TILE], bias, tile * ROWS + first_row + base + i < p.length, slope);
                    step[i] = {d, d * widen(row[0])};
                }
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) to[(base + i) * 32] = step[i];
            }
        };
        auto finish = [&](int tile) {
            io *own = rows + tile % STAGES * TENSORS * TILE + mine;
            const float *sums = parts + (tile & 1) * PARTS + (at.run * SPLIT * ROWS + first_row) * 32 + at.lane;
#pragma unroll 1
            for (int base = 0; base < OWN; base += TOGETHER) {
                float y[TOGETHER];
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) {
                    const io *row = own + (base + i) * CHANNELS;
                    y[i] = HAS_SKIP ? skip * widen(row[0]) : 0.0f;
#pragma unroll
                    for (int s = 0; s < SPLIT; ++s) y[i] += sums[(s * ROWS + base + i) * 32];
                    if (HAS_Z) {
                        float z = widen(row[2 * TILE]);
                        y[i] *= z * sigmoid(z);
                    }
                }
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) own[(base + i) * CHANNELS] = narrow(y[i]);
            }
            __syncwarp();
            int t = tile * ROWS + first_row, c = at.run * 32;
            store_rows(p.y + at.of_row(p, t) + c, own - at.lane, p.channels, p.length - t, at.there - c);
        };

        copy(0);
        copy(1);
        copy_wait<1>();
        helpers_meet();
        prepare(0);
        copy_wait<0>();
        for (int tile = 0; tile < tiles; ++tile) {
            __syncthreads();
            copy(tile + 2);
            prepare(tile + 1);
            if (tile) finish(tile - 1);
            copy_wait<0>();
        }
        __syncthreads();
        finish(tiles - 1);
    }
}
#endif

// --- backward -----------------------------------------------------------------------------------

#if defined(ALONG) || defined(AGAINST)
// Every warp does all there is to do for its 32 channels: preparing in separate warps, as in the
// forward pass, costs more instructions here than it hides of their latency. Time is cut into chunks.
//
// The outputs of a tile take the place of its inputs in shared memory, to be stored in rows of 16 bytes.
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
            if (i < left) *(float4 *)(to + at + (long long)i * p.channels) = *(const float4 *)(tile + in_tile() + i * CHANNELS);
    }
    __device__ __forceinline__ void advance(const Arguments &p, int steps) { at += (long long)steps * p.channels; }
};
#endif

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
        if (first > at.start) ChannelSum::add_quads(at.of_block(p, p.dC), quads + (odd ^ 1) * ChannelSum::SIZE, first - ROWS, at.end);
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
                d[i] = step_size(row[TILE], bias, first + base + i < at.end, slope);
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
                    over_channels.add(dC_[i / ChannelSum::TOGETHER], i % ChannelSum::TOGETHER * (STATES / 4) + m / 4, v);
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
    ChannelSum::add_quads(at.of_block(p, p.dC), quads + (tiles - 1) % 2 * ChannelSum::SIZE, at.start + (tiles - 1) * ROWS, at.end);
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
        if (first < last) ChannelSum::add_quads(at.of_block(p, p.dB), quads + (odd ^ 1) * ChannelSum::SIZE, first + ROWS, at.end);
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
                d[i] = step_size(row[TILE], bias, first + base + i < at.end, slope[i]);
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
                    over_channels.add(dB_[i / ChannelSum::TOGETHER], i % ChannelSum::TOGETHER * (STATES / 4) + m / 4, v);
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
