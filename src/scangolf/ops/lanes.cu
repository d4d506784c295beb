// What all CUDA kernels of this folder share: the dtype of their inputs, fast arithmetic, asynchronous
// copies. Put before the other sources by the modules that compile them.
//
// Macros: IO, the dtype: 0 float32, 1 bfloat16, 2 float16. SOFTPLUS: of step sizes.

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

__device__ __forceinline__ float step_size(float delta, float bias, bool there, float &slope) {
    float d = delta + bias;
    slope = 1.0f;
    if (SOFTPLUS) d = softplus(d, slope);
    return there ? d : 0.0f;                        // a step of size 0 changes nothing
}

// --- copies -----------------------------------------------------------------------------------

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// 16 bytes into shared memory; zeros if they are not there.
__device__ __forceinline__ void copy_16(io *to, const io *from, bool there) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
