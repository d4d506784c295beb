// What the kernels of the selective scan share. s6_cuda.py puts it, after lanes.cu, before s6_cuda_forward.cu
// or s6_cuda_backward.cu and compiles it at run time. The recurrence stands in reference.py:
//
//     d = softplus(delta + bias)    x = d u    a = exp2(d A), A scaled by log2(e)
//     h_t = a_t h_{t-1} + x_t B_t              y_t = (sum_n C_t h_t + D u_t) silu(z_t)
//
// A lane has a channel and STATES numbers of its state. A block has RUNS times 32 channels of one
// sequence and goes through time in tiles of ROWS steps, which come into shared memory by asynchronous
// copies. B and C are widened to float32 once for the block; every lane reads the same address. A
// restart is an addend of -inf to the exponent.
//
// Loops go through a tile in groups of UNROLL steps, which load first and store last: shared memory is
// one array to the compiler, which would not move a load across a store.
//
// Macros: IO, the dtype: 0 float32, 1 bfloat16, 2 float16. STATES, 4 to 16. SPLIT: warps that share the
// state of a channel. ROWS, UNROLL. BLOCKS that share a multiprocessor. SPAN: steps over which sums are
// carried backward. Flags: HAS_Z, HAS_BIAS, HAS_SKIP (D), HAS_SEQ, SOFTPLUS, CHUNKED (backward); and
// which kernel: FORWARD, ALONG or AGAINST.
//
// Shapes: b sequence, k chunk, n state, d channel, t step.

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

// A barrier of the helpers alone.
__device__ __forceinline__ void helpers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(HELPERS) : "memory"); }

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
                const io *from =
                    column < A_ROW ? p.B + at.b * p.B_batch + at.group * p.B_group + (long long)t * p.B_row
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

__device__ __forceinline__ void store_rows_of_state(float *to, const float (&h)[STATES], const Arguments &p,
                                                    const Place &at) {
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
