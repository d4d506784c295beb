// What the kernels of the SSD scan share. ssd_cuda.py puts it, after lanes.cu, before
// ssd_cuda_forward.cu or ssd_cuda_backward.cu and compiles it at run time. The recurrence stands in
// reference.py, its chunked form in ssd_chunked.py.
//
// A block of four warps has one part of a head of one sequence, P of the head's channels, and goes
// through time in chunks of T steps, one after the other, with the state [N, P] in registers. In
// products of [T, ...] matrices a warp has 16 of the T rows. Where a product's result is a factor of the
// next, it stays in registers: an accumulator of mma.m16n8k16 has the layout of its left factor.
//
// The next chunk's tiles come into shared memory by asynchronous copies meanwhile. There the 16-byte
// pieces of a row are exchanged by its number, so that eight rows of a column lie in different banks.
//
// Macros: N states, P channels of a part, DT: 0 if dt is float32, 1 if it is IO. BLOCKS that share a
// multiprocessor. SHARED, the bytes of shared memory that a block has. Flags: HAS_BIAS, HAS_SKIP (D),
// HAS_SEQ, SOFTPLUS.
//
// Shapes: b sequence, h head, part, k chunk, n state, p channel; t step, i where it is read, j where it
// is written.

struct Arguments {
    const io *x, *B, *C, *grad_y;
    const void *dt;
    const float *A, *skip, *bias, *initial, *grad_final;
    const int *documents;                               // counted, [b, t]
    io *y, *states;                                     // [b, t, h, p of a head]; [b, k, part, n, p]
    float *final;                                       // [b, part, p, n]
    io *dx, *dB, *dC;                                   // like y; [b, t, part, n] twice
    float *ddt, *dA, *dskip, *dbias;                    // [b, t, part]; [b, part] thrice
    float *grad_initial;                                // like final
    long long x_batch, dt_batch, B_batch, C_batch, dy_batch;
    int x_row, x_head, dt_row, B_row, B_group, C_row, C_group, dy_row, dy_head;
    int length, heads, per_group, parts, chunks;        // parts of a head
};

constexpr int T = 64, WARPS = 4, THREADS = 32 * WARPS;

// --- tiles in shared memory -------------------------------------------------------------------------

// Where a number of a tile with rows of W numbers is.
template <int W> __device__ __forceinline__ int place(int row, int column) {
    constexpr int PIECES = W / 8, ROWS = W >= 64 ? 1 : 64 / W;          // of a row; rows of 128 bytes
    int exchange = row / ROWS % (PIECES < 8 ? PIECES : 8);
    return row * W + ((column / 8 ^ exchange) * 8 | column % 8);
}

// Rows first .. of an array into a tile of ROWS rows, by all threads; zeros from row `end` on.
template <int ROWS, int W>
__device__ __forceinline__ void copy_tile(io *tile, const io *from, long long stride, int first, int end) {
    constexpr int PIECES = W / 8;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        int row = i / PIECES, column = i % PIECES * 8, t = first + row;
        copy_16(tile + place<W>(row, column), from + (t < end ? t : first) * stride + column, t < end);
    }
}

// A warp's 16 rows, which it alone has written, to rows first .. of an array.
template <int W>
__device__ __forceinline__ void store_rows(io *to, const io *rows, long long stride, int first, int end) {
    constexpr int PIECES = W / 8;
    __syncwarp();
#pragma unroll
    for (int i = threadIdx.x % 32; i < 16 * PIECES; i += 32) {
        int row = i / PIECES, column = i % PIECES * 8, t = first + row;
        if (t < end) *(uint4 *)(to + t * stride + column) = *(const uint4 *)(rows + place<W>(row, column));
    }
    __syncwarp();
}

// --- matrix products --------------------------------------------------------------------------------

// Two numbers in a register, the first one low.
__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned both;
#if IO == 1
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
    return both;
}

__device__ __forceinline__ float2 unpack(unsigned both) { return {widen(both & 0xffff), widen(both >> 16)}; }

__device__ __forceinline__ unsigned scaled(unsigned both, float2 by) {
    float2 x = unpack(both);
    return pack(x.x * by.x, x.y * by.y);
}

struct Fragment {                                       // of a 16 x 16 matrix, or of two of 16 x 8
    unsigned r[4];
};

__device__ __forceinline__ Fragment load(const io *row) {
    Fragment f;
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
                 : "r"(at)
                 : "memory");
    return f;
}

__device__ __forceinline__ Fragment load_transposed(const io *row) {
    Fragment f;
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
                 : "r"(at)
                 : "memory");
    return f;
}

// 16 x 16 of a tile as a left factor: rows m .., columns k ..; or of its transpose, from rows k ...
template <int W> __device__ __forceinline__ Fragment left(const io *tile, int m, int k) {
    int lane = threadIdx.x % 32;
    return load(tile + place<W>(m + lane % 16, k + lane / 16 * 8));
}
template <int W> __device__ __forceinline__ Fragment left_transposed(const io *tile, int m, int k) {
    int lane = threadIdx.x % 32;
    return load_transposed(tile + place<W>(k + lane / 16 * 8 + lane % 8, m + lane / 8 % 2 * 8));
}

// 16 x 16 of a tile as a right factor, rows k .., columns n ..; or of its transpose, from rows n ...
template <int W> __device__ __forceinline__ Fragment right(const io *tile, int k, int n) {
    int lane = threadIdx.x % 32;
    return load_transposed(tile + place<W>(k + lane % 16, n + lane / 16 * 8));
}
template <int W> __device__ __forceinline__ Fragment right_transposed(const io *tile, int k, int n) {
    int lane = threadIdx.x % 32;
    return load(tile + place<W>(n + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
}

// 16 x 16 sums: of the lane's row and the one eight below, at columns `first_column` and the next, then
// eight columns on.
struct Sums {
    float2 v[2][2];                                     // columns, rows
};

__device__ __forceinline__ int first_row() { return threadIdx.x % 32 / 4; }
__device__ __forceinline__ int first_column() { return threadIdx.x % 4 * 2; }

__device__ __forceinline__ void multiply(float2 (&c)[2], const Fragment &a, unsigned b0, unsigned b1) {
#if IO == 1
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
#endif
                 : "+f"(c[0].x), "+f"(c[0].y), "+f"(c[1].x), "+f"(c[1].y)
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

// sums += a b
__device__ __forceinline__ void multiply(Sums &sums, const Fragment &a, const Fragment &b) {
    multiply(sums.v[0], a, b.r[0], b.r[1]);
    multiply(sums.v[1], a, b.r[2], b.r[3]);
}

__device__ __forceinline__ void multiply(Sums &sums, float above, float below) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
        sums.v[c][0].x *= above, sums.v[c][0].y *= above;
        sums.v[c][1].x *= below, sums.v[c][1].y *= below;
    }
}

// Rounded, as a left factor.
__device__ __forceinline__ Fragment as_left(const Sums &s) {
    return {pack(s.v[0][0].x, s.v[0][0].y), pack(s.v[0][1].x, s.v[0][1].y), pack(s.v[1][0].x, s.v[1][0].y),
            pack(s.v[1][1].x, s.v[1][1].y)};
}

// Two numbers of a tile: those of `v[c][r]` of the sums at row m, column n.
template <int W> __device__ __forceinline__ io *place_of(io *tile, int m, int n, int c, int r) {
    return tile + place<W>(m + first_row() + 8 * r, n + 8 * c + first_column());
}

template <int W> __device__ __forceinline__ void put(io *tile, int m, int n, const Sums &s) {
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int r = 0; r < 2; ++r) *(unsigned *)place_of<W>(tile, m, n, c, r) = pack(s.v[c][r].x, s.v[c][r].y);
}

// Of the lane's rows, the sum of the products with the numbers of a tile at the same places.
template <int W> __device__ __forceinline__ float2 dots(io *tile, int m, int n, const Sums &s) {
    float dot[2] = {0.0f, 0.0f};
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float2 x = unpack(*(const unsigned *)place_of<W>(tile, m, n, c, r));
            dot[r] = fmaf(x.x, s.v[c][r].x, fmaf(x.y, s.v[c][r].y, dot[r]));
        }
    return {dot[0], dot[1]};
}

// --- the state ---------------------------------------------------------------------------------------

// [N, P] in the registers of four warps, blocks of 16 x 16: rows first, columns where there are fewer.
struct State {
    static constexpr int DOWN = N / 16 < WARPS ? N / 16 : WARPS, ACROSS = WARPS / DOWN;     // warps
    static constexpr int ROWS = N / 16 / DOWN, COLUMNS = P / 16 / ACROSS;                   // blocks of a warp
    static_assert(ROWS * DOWN * 16 == N && COLUMNS * ACROSS * 16 == P, "no whole blocks");
    Sums of[ROWS][COLUMNS];

    static __device__ __forceinline__ int row(int r) { return (threadIdx.x / 32 % DOWN + r * DOWN) * 16; }
    static __device__ __forceinline__ int column(int c) { return (threadIdx.x / 32 / DOWN * COLUMNS + c) * 16; }

    // `from` and `to` are [P, N].
    __device__ __forceinline__ void read(const float *from) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float *at = from + (column(c) + i / 2 * 8 + first_column()) * N + row(r) + i % 2 * 8 + first_row();
                    of[r][c].v[i / 2][i % 2] = from ? make_float2(at[0], at[N]) : make_float2(0.0f, 0.0f);
                }
    }
    __device__ __forceinline__ void write(float *to) const {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float *at = to + (column(c) + i / 2 * 8 + first_column()) * N + row(r) + i % 2 * 8 + first_row();
                    at[0] = of[r][c].v[i / 2][i % 2].x, at[N] = of[r][c].v[i / 2][i % 2].y;
                }
    }

    // Rounded, as a tile [N, P].
    __device__ __forceinline__ void put_tile(io *tile) const {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) put<P>(tile, row(r), column(c), of[r][c]);
    }

    // Itself by `kept`, plus the sum over a chunk's steps of weight (row of U [T, N])^T (row of V [T, P]).
    __device__ __forceinline__ void update(float kept, const io *U, const io *V, const float *weights) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) multiply(of[r][c], kept, kept);
#pragma unroll
        for (int t = 0; t < T; t += 16) {
            float2 early = *(const float2 *)(weights + t + first_column());
            float2 late = *(const float2 *)(weights + t + 8 + first_column());
            Fragment v[COLUMNS];
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) v[c] = right<P>(V, t, column(c));
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                Fragment u = left_transposed<N>(U, row(r), t);
                u = {scaled(u.r[0], early), scaled(u.r[1], early), scaled(u.r[2], late), scaled(u.r[3], late)};
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) multiply(of[r][c], u, v[c]);
            }
        }
    }
};

// --- steps and decays ----------------------------------------------------------------------------------

// What belongs to the steps of a chunk and not to a channel. Decays are in powers of two.
struct alignas(16) Steps {
    float d[T], slope[T];                               // step sizes and their derivatives by dt
    float cum[T];                                       // log-decay from before the chunk to after the step
    float enter[T], exit[T];                            // decays from before the chunk, and to its end
    float leave[T];                                     // d exit: what is left of the step's input
    int document[HAS_SEQ ? T : 1];
    float kept;                                         // of the state before the chunk, at its end
};

// A lane's two steps of a chunk as they were read, ahead of use.
struct RawSteps {
    float dt[2];
    int document[2], before, last;

    __device__ __forceinline__ void read(const Arguments &p, long long dt_at, int b, int first) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            int t = min(first + threadIdx.x % 32 * 2 + i, p.length - 1);
            long long at = dt_at + (long long)t * p.dt_row;
            dt[i] = DT == 0 ? ((const float *)p.dt)[at] : widen(((const io *)p.dt)[at]);
            document[i] = HAS_SEQ ? p.documents[(long long)b * p.length + t] : 0;
        }
        before = HAS_SEQ ? p.documents[(long long)b * p.length + max(first - 1, 0)] : 0;
        last = HAS_SEQ ? p.documents[(long long)b * p.length + min(first + T, p.length) - 1] : 0;
    }
};

// By one warp.
__device__ __forceinline__ void prepare(Steps &to, const RawSteps &raw, const Arguments &p, float A, float bias, int first) {
    int lane = threadIdx.x % 32;
    float d[2], slope[2], cum[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        d[i] = step_size(raw.dt[i], bias, first + 2 * lane + i < p.length, slope[i]);
        cum[i] = fmaxf(d[i] * A, -150.0f);              // nothing is left: larger sums would only be less exact
    }
    float sum = cum[0] + cum[1];
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        float earlier = __shfl_up_sync(~0u, sum, by);
        if (lane >= by) sum += earlier;
    }
    float earlier = __shfl_up_sync(~0u, sum, 1), total = __shfl_sync(~0u, sum, 31);
    cum[0] += lane ? earlier : 0.0f;
    cum[1] = sum;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        int t = 2 * lane + i;
        float exit = !HAS_SEQ || raw.document[i] == raw.last ? exp2_(total - cum[i]) : 0.0f;
        to.d[t] = d[i], to.slope[t] = slope[i], to.cum[t] = cum[i];
        to.enter[t] = !HAS_SEQ || raw.document[i] == raw.before ? exp2_(cum[i]) : 0.0f;
        to.exit[t] = exit, to.leave[t] = d[i] * exit;
        if (HAS_SEQ) to.document[t] = raw.document[i];
    }
    if (lane == 0) to.kept = raw.last == raw.before ? exp2_(total) : 0.0f;
}

// The decay from step j to step i; 0 if j is later or in another document.
__device__ __forceinline__ float decay(float cum_i, float cum_j, int i, int j, int document_i, int document_j) {
    bool seen = i >= j && (!HAS_SEQ || document_i == document_j);
    return seen ? exp2_(cum_i - cum_j) : 0.0f;
}

// --- where a block works --------------------------------------------------------------------------------

struct Place {
    int b, part, parts, head, group, channel;           // parts of a sequence; the part's first channel
    __device__ __forceinline__ explicit Place(const Arguments &p) {
        parts = p.heads * p.parts, part = blockIdx.x % parts, b = blockIdx.x / parts;
        head = part / p.parts, channel = part % p.parts * P, group = head / p.per_group;
    }
    __device__ __forceinline__ const io *of_x(const Arguments &p) const {
        return p.x + b * p.x_batch + (long long)head * p.x_head + channel;
    }
    __device__ __forceinline__ const io *of_B(const Arguments &p) const {
        return p.B + b * p.B_batch + (long long)group * p.B_group;
    }
    __device__ __forceinline__ const io *of_C(const Arguments &p) const {
        return p.C + b * p.C_batch + (long long)group * p.C_group;
    }
    __device__ __forceinline__ long long of_dt(const Arguments &p) const { return b * p.dt_batch + head; }
    __device__ __forceinline__ long long of_y(const Arguments &p) const {               // [b, t, part, p]
        return ((long long)b * p.length * parts + part) * P;
    }
    __device__ __forceinline__ long long of_state(const Arguments &p) const {           // [b, part, p, n]
        return ((long long)b * parts + part) * P * N;
    }
    __device__ __forceinline__ long long of_chunk(const Arguments &p, int chunk) const {    // [b, k, part, n, p]
        return (((long long)b * p.chunks + chunk) * parts + part) * N * P;
    }
};
