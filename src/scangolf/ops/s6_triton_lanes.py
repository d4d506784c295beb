"""Small parts of the Triton kernels of the selective scan: loads, elementwise functions, sums.

Every tensor in the kernels is one-dimensional, channels over lanes, and what has N states or T
steps is a tuple of such tensors: sums over the state stay in a thread and no layout is ever
converted. PTX, a compile-time flag, is off in Triton's interpreter and on other makers' devices.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(pointer, stride, channel, first, limit, T: tl.constexpr):
    """Rows first .. first + T - 1, of which `pointer` is the first; zeros from `limit` on."""
    rows = ()
    for t in tl.static_range(T):
        rows = rows + (tl.load(pointer + t * stride + channel, mask=first + t < limit, other=0.0),)
    return rows


@triton.jit
def load_weights(pointer, WIDTH: tl.constexpr, PTX: tl.constexpr):
    """WIDTH consecutive float32 numbers, a multiple of four, the same in every lane."""
    weights = ()
    for i in tl.static_range(WIDTH // 4):
        if PTX:
            weights = weights + tl.inline_asm_elementwise(
                "ld.global.nc.v4.f32 {$0, $1, $2, $3}, [$4];",
                "=f,=f,=f,=f,l",
                [(pointer + 4 * i).to(tl.int64)],
                (tl.float32, tl.float32, tl.float32, tl.float32),
                is_pure=True,
                pack=1,
            )
        else:
            for j in tl.static_range(4):
                weights = weights + (tl.load(pointer + 4 * i + j),)
    return weights


@triton.jit
def load_state(pointers, stride, inside, N: tl.constexpr):
    """N rows of C channels."""
    rows = ()
    for n in tl.static_range(N):
        rows = rows + (tl.load(pointers + n * stride, mask=inside, other=0.0),)
    return rows


@triton.jit
def store_state(pointers, stride, inside, rows, N: tl.constexpr):
    for n in tl.static_range(N):
        tl.store(pointers + n * stride, rows[n], mask=inside)


@triton.jit
def zero_state(N: tl.constexpr, C: tl.constexpr):
    rows = ()
    for _ in tl.static_range(N):
        rows = rows + (tl.zeros([C], tl.float32),)
    return rows


@triton.jit
def reciprocal(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def sigmoid(x, PTX: tl.constexpr):
    return reciprocal(1.0 + tl.exp2(x * -LOG2_E), PTX)


@triton.jit
def softplus(x, PTX: tl.constexpr):
    """log(1 + exp x) and its derivative.

    With e = exp(-|x|): max(x, 0) + log(1 + e), where log(1 + e) = 2 artanh(e / (2 + e)), the
    latter by a polynomial with a relative error of 2e-7: small steps keep their precision.
    """
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    s = e * reciprocal(2.0 + e, PTX)
    q = s * s
    p = s * (1.9999996423721313 + q * (0.6667597889900208 + q * (0.3959006071090698 + q * 0.3422245383262634)))  # fmt: skip  # noqa: E501
    r = reciprocal(1.0 + e, PTX)
    return tl.maximum(x, 0.0) + p, tl.where(x >= 0.0, r, e * r)


@triton.jit
def step_size(row, bias, valid, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, PTX: tl.constexpr):
    """d and its derivative by delta; 0 where the step is not valid: such a step changes nothing."""
    d = row.to(tl.float32)
    slope = 1.0
    if HAS_BIAS:
        d += bias
    if SOFTPLUS:
        d, slope = softplus(d, PTX)
    return tl.where(valid, d, 0.0), slope


@triton.jit
def gate(row, HAS_Z: tl.constexpr, PTX: tl.constexpr):
    """z and sigmoid(z)."""
    if HAS_Z:
        z = row.to(tl.float32)
        return z, sigmoid(z, PTX)
    else:
        return 1.0, 1.0


@triton.constexpr_function
def sums_asm(count, per_lane):
    """PTX that sums `count` numbers a channel over all channels of a warp, and stores the sums.

    Halving: of two numbers a lane keeps one and trades the other, so that after log2(count)
    exchanges lane l holds number l % count, summed over the lanes that traded. The store is part
    of it, because only here is it known which lane holds what. Operands: an output without meaning,
    then, each once for every channel of a lane: the numbers, the address, whether to store.
    """
    asm = [
        "{ .reg .pred side, holds; .reg .b32 lane, bit; .reg .f32 keep, trade; .reg .b64 to;",
        f".reg .f32 v<{count}>; mov.u32 lane, %laneid;",
    ]
    for i in range(count):
        x = [f"${(1 + i) * per_lane + j}" for j in range(per_lane)]
        asm.append(f"mov.f32 v{i}, {x[0]};" if per_lane == 1 else f"add.f32 v{i}, {x[0]}, {x[1]};")
    distance = count // 2
    while distance:
        asm.append(f"and.b32 bit, lane, {distance}; setp.ne.u32 side, bit, 0;")
        for i in range(distance):
            j = i + distance
            asm.append(
                f"selp.f32 trade, v{i}, v{j}, side; selp.f32 keep, v{j}, v{i}, side;"
                f"shfl.sync.bfly.b32 trade, trade, {distance}, 31, -1; add.f32 v{i}, keep, trade;"
            )
        distance //= 2
    distance = count
    while distance < 32:
        asm.append(f"shfl.sync.bfly.b32 trade, v0, {distance}, 31, -1; add.f32 v0, v0, trade;")
        distance *= 2
    address, store = ((1 + count + i) * per_lane for i in range(2))
    asm.append(
        f"mul.wide.u32 to, lane, 4; add.s64 to, to, ${address};"
        f"setp.ne.s32 holds, ${store}, 0; setp.lt.and.u32 holds, lane, {count}, holds;"
        "@holds st.global.f32 [to], v0;"
    )
    asm += [f"mov.b32 ${j}, 0;" for j in range(per_lane)]
    return " ".join(asm) + "}"


@triton.constexpr_function
def sums_operands(count, per_lane):
    return ",".join(
        ["=r"] * per_lane + ["f"] * (count * per_lane) + ["l"] * per_lane + ["r"] * per_lane
    )


@triton.jit
def store_channel_sums(pointer, values, valid, N: tl.constexpr, C: tl.constexpr, PTX: tl.constexpr):
    """Writes the sums over channels of N tensors at pointer .. pointer + N - 1."""
    if PTX:
        tl.inline_asm_elementwise(
            sums_asm(N, C // 32),
            sums_operands(N, C // 32),
            values + (pointer.to(tl.int64), valid.to(tl.int32)),
            tl.int32,
            is_pure=False,
            pack=C // 32,
        )
    else:
        for n in tl.static_range(N):
            tl.store(pointer + n, tl.sum(values[n], axis=0), mask=valid)
