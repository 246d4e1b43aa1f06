// What kernels for Hopper share: barriers, bulk tensor copies and wgmma.
//
// Tiles lie in shared memory in boxes of 64 columns: a row of a box is 128 bytes, whose 16-byte chunks are permuted by the
// row's number modulo 8 (the 128-byte swizzle of the copy engine and of wgmma).

typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(64) TensorMap {
    char bytes[128];
};

constexpr int WARPGROUP = 128;           // threads
constexpr int BOX = 64 * 128;            // bytes of a box of 64 rows and 64 columns

// ---- barriers ----

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}\n" ::"r"(barrier), "r"(parity) : "memory");
}
// Named barriers: 0 is __syncthreads, 1.. take turns, 8.. are those of the warpgroups.
__device__ __forceinline__ void named_sync(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int name, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// ---- copies between global and shared memory: boxes of 64 rows and 64 columns ----

__device__ __forceinline__ void load_box(const TensorMap& map, u32 to, u32 barrier, int column, int row, int batch) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
            "r"(to), "l"(&map), "r"(barrier), "r"(column), "r"(row), "r"(batch) : "memory");
}
__device__ __forceinline__ void store_box(const TensorMap& map, u32 from, int column, int row, int batch) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::
            "l"(&map), "r"(from), "r"(column), "r"(row), "r"(batch) : "memory");
}
__device__ __forceinline__ void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ __forceinline__ void stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void stores_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- registers ----

// From 168 of each thread to what the roles need; the sum over the warpgroups must not grow.
__device__ __forceinline__ void computing_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 240;"); }
__device__ __forceinline__ void loading_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 24;"); }

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
__device__ __forceinline__ float low_half(u32 x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high_half(u32 x) { return __uint_as_float(x & 0xffff0000u); }
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ void store_shared(u32 at, u32 x) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(x) : "memory"); }

// ---- wgmma ----

// Descriptor of a matrix of 128-byte rows; `next` is the distance to the next 64 columns where columns are not summed over.
__device__ __forceinline__ u64 matrix(u32 at, u32 next) {
    return (u64)((at & 0x3FFFF) >> 4) | ((u64)(next >> 4) << 16) | ((u64)(1024 >> 4) << 32) | (1ull << 62);
}
#define R4(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3])
#define R16(x, i) R4(x, i), R4(x, i + 4), R4(x, i + 8), R4(x, i + 12)
#define R32(x) R16(x, 0), R16(x, 16)
#define R64(x) R16(x, 0), R16(x, 16), R16(x, 32), R16(x, 48)
#define W4(x, i) "=f"(x[i]), "=f"(x[i + 1]), "=f"(x[i + 2]), "=f"(x[i + 3])
#define W16(x, i) W4(x, i), W4(x, i + 4), W4(x, i + 8), W4(x, i + 12)
#define W32(x) W16(x, 0), W16(x, 16)
#define W64(x) W16(x, 0), W16(x, 16), W16(x, 32), W16(x, 48)
#define L32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define L64 L32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// c = a*b (mma_new) or c += a*b (mma), 64 rows by 16 summed over, where a is a matrix or in registers.
// T: whether b's columns are summed over (0) or its rows (1).
template <int T> __device__ __forceinline__ void mma_new(float (&c)[64], u64 a, u64 b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" L64 "}, %64, %65, p, 1, 1, 0, %66;}\n"
                 : W64(c) : "l"(a), "l"(b), "n"(T));
}
template <int T> __device__ __forceinline__ void mma_new(float (&c)[32], u64 a, u64 b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" L32 "}, %32, %33, p, 1, 1, 0, %34;}\n"
                 : W32(c) : "l"(a), "l"(b), "n"(T));
}
template <int T> __device__ __forceinline__ void mma_new(float (&c)[64], const u32* a, u64 b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" L64 "}, {%64,%65,%66,%67}, %68, p, 1, 1, %69;}\n"
                 : W64(c) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(T));
}
template <int T> __device__ __forceinline__ void mma_new(float (&c)[32], const u32* a, u64 b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" L32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, %37;}\n"
                 : W32(c) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(T));
}
template <int T> __device__ __forceinline__ void mma(float (&c)[64], u64 a, u64 b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" L64 "}, %64, %65, p, 1, 1, 0, %66;}\n"
                 : R64(c) : "l"(a), "l"(b), "n"(T));
}
template <int T> __device__ __forceinline__ void mma(float (&c)[32], u64 a, u64 b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" L32 "}, %32, %33, p, 1, 1, 0, %34;}\n"
                 : R32(c) : "l"(a), "l"(b), "n"(T));
}
template <int T> __device__ __forceinline__ void mma(float (&c)[64], const u32* a, u64 b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" L64 "}, {%64,%65,%66,%67}, %68, p, 1, 1, %69;}\n"
                 : R64(c) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(T));
}
template <int T> __device__ __forceinline__ void mma(float (&c)[32], const u32* a, u64 b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" L32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, %37;}\n"
                 : R32(c) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(T));
}
__device__ __forceinline__ void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void mma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// Keeps the compiler from moving uses of the registers across.
template <int N> __device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N> __device__ __forceinline__ void pin(u32 (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}
