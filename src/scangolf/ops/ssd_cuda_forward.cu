// The SSD scan, forward: y, the state before each chunk (rounded, as products take it), and the last
// state.
//
//     y_i = sum_{j <= i} (C_i B_j) decay_ij d_j x_j + enter_i C_i h + D x_i
//     h  <- kept h + sum_j leave_j B_j x_j
//
// D goes into the diagonal of what weighs x. Scores of 16 x 16 steps are made and used up at once.

struct Shared {
    io x[2][T * P], B[2][T * N], C[2][T * N];
    io h[N * P];
    io y[P > N ? T * P : 8];                            // else where C was
    Steps steps[2];
};

static_assert(sizeof(Shared) <= SHARED, "more shared memory than is asked for");

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) forward(const __grid_constant__ Arguments p) {
    extern __shared__ float4 memory[];
    Shared &shared = *(Shared *)memory;
    Place at(p);
    int warp = threadIdx.x / 32, i = 16 * warp;         // the warp's first row
    const io *x = at.of_x(p), *B = at.of_B(p), *C = at.of_C(p);
    io *y = p.y + at.of_y(p);
    float A = LOG2_E * p.A[at.head], bias = HAS_BIAS ? p.bias[at.head] : 0.0f, skip = HAS_SKIP ? p.skip[at.head] : 0.0f;

    auto copy = [&](int chunk) {
        int odd = chunk & 1, first = chunk * T;
        copy_tile<T, P>(shared.x[odd], x, p.x_row, first, p.length);
        copy_tile<T, N>(shared.B[odd], B, p.B_row, first, p.length);
        copy_tile<T, N>(shared.C[odd], C, p.C_row, first, p.length);
        copy_commit();
    };

    copy(0);
    State h;
    h.read(p.initial ? p.initial + at.of_state(p) : nullptr);
    h.put_tile(shared.h);
    RawSteps raw;
    if (warp == 0) {                                    // whose rows see the fewest columns
        raw.read(p, at.of_dt(p), at.b, 0);
        prepare(shared.steps[0], raw, p, A, bias, 0);
    }

    for (int chunk = 0; chunk < p.chunks; ++chunk) {
        int odd = chunk & 1, first = chunk * T;
        bool more = chunk + 1 < p.chunks;
        copy_wait<0>();
        __syncthreads();
        if (more) {
            copy(chunk + 1);
            if (warp == 0) raw.read(p, at.of_dt(p), at.b, first + T);
        }
        const Steps &s = shared.steps[odd];
        const io *x_tile = shared.x[odd], *B_tile = shared.B[odd];
        io *C_tile = shared.C[odd];
        io *states = p.states + at.of_chunk(p, chunk);
#pragma unroll
        for (int v = threadIdx.x; v < N * P / 8; v += THREADS)
            *(uint4 *)(states + v * 8) = *(const uint4 *)(shared.h + place<P>(v / (P / 8), v % (P / 8) * 8));

        Fragment C_i[N / 16];
#pragma unroll
        for (int n = 0; n < N / 16; ++n) C_i[n] = left<N>(C_tile, i, n * 16);
        Sums sums[P / 16] = {};
#pragma unroll
        for (int n = 0; n < N / 16; ++n)
#pragma unroll
            for (int c = 0; c < P / 16; ++c) multiply(sums[c], C_i[n], right<P>(shared.h, n * 16, c * 16));
        int row = i + first_row();
        float cum_i[2] = {s.cum[row], s.cum[row + 8]};
        int document_i[2] = {HAS_SEQ ? s.document[row] : 0, HAS_SEQ ? s.document[row + 8] : 0};
#pragma unroll
        for (int c = 0; c < P / 16; ++c) multiply(sums[c], s.enter[row], s.enter[row + 8]);

#pragma unroll 1
        for (int j = 0; j <= i; j += 16) {
            Sums M = {};
#pragma unroll
            for (int n = 0; n < N / 16; ++n) multiply(M, C_i[n], right_transposed<N>(B_tile, n * 16, j));
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                int column = j + 8 * c + first_column();
                float2 cum_j = *(const float2 *)(s.cum + column), d_j = *(const float2 *)(s.d + column);
                int document_j[2] = {HAS_SEQ ? s.document[column] : 0, HAS_SEQ ? s.document[column + 1] : 0};
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    int t = row + 8 * r;
                    float2 &m = M.v[c][r];
                    m.x *= d_j.x * decay(cum_i[r], cum_j.x, t, column, document_i[r], document_j[0]);
                    m.y *= d_j.y * decay(cum_i[r], cum_j.y, t, column + 1, document_i[r], document_j[1]);
                    if (HAS_SKIP && t == column) m.x += skip;
                    if (HAS_SKIP && t == column + 1) m.y += skip;
                }
            }
            Fragment weights = as_left(M);
#pragma unroll
            for (int c = 0; c < P / 16; ++c) multiply(sums[c], weights, right<P>(x_tile, j, c * 16));
        }
        io *rows = P > N ? shared.y + i * P : C_tile + i * N;           // the warp alone reads its rows of C
#pragma unroll
        for (int c = 0; c < P / 16; ++c) put<P>(rows, 0, c * 16, sums[c]);
        store_rows<P>(y, rows, (long long)at.parts * P, first + i, p.length);

        h.update(s.kept, B_tile, x_tile, s.leave);
        if (warp == 0 && more) prepare(shared.steps[odd ^ 1], raw, p, A, bias, first + T);
        __syncthreads();                                // all have read the state before the chunk
        h.put_tile(shared.h);
    }
    h.write(p.final + at.of_state(p));
}
