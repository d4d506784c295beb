// The selective scan, forward.
//
// A block has two kinds of warps. Four scanning warps do the recurrence and nothing else; where there
// are few channels, the state of each is split over SPLIT of them. While they go through a tile, four
// helping warps prepare the next (copies, step sizes, inputs) and finish the one before (sums over the
// split, skip, gate, stores). One barrier a tile.

extern "C" __global__ void __launch_bounds__(32 * WARPS + HELPERS, BLOCKS)
forward(const __grid_constant__ Arguments p) {
    constexpr int TENSORS = 3, STAGES = 4;                              // finished, scanned, prepared, copied
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
                    float slope, d = step_size(widen(row[TILE]), bias, tile * ROWS + first_row + base + i < p.length, slope);
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
