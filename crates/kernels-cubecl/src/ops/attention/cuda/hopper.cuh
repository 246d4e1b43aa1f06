// What the attention kernels for Hopper share: wgmma, bulk tensor copies, barriers, and the walk over tiles of queries.
//
// Tiles lie in shared memory in halves of 64 columns: a row of a half is 128 bytes, whose 16-byte chunks are permuted by the
// row's number modulo 8 (the 128-byte swizzle of the copy engine and of wgmma).
//
// D is the head size, 64 or 128. Two warpgroups compute and one loads.

typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(64) TensorMap {
    char bytes[128];
};

constexpr int HALVES = D / 64;
constexpr int GROUPS = 2;
constexpr int QUERIES = 64 * GROUPS;     // of a tile of queries
constexpr int WARPGROUP = 128;           // threads
constexpr int BOX = 64 * 128;            // bytes of a box of 64 rows and 64 columns
constexpr int CACHE_BYTES = 24 << 20;    // of the second-level cache, for tensors that many blocks read
constexpr float LOG2E = 1.4426950408889634f;
constexpr float HIDDEN = -1e34f;         // far below real scores, and finite after the factor

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
// A tile of ROWS rows and D columns.
template <int ROWS>
__device__ __forceinline__ void load_tile(const TensorMap& map, u32 to, u32 barrier, int column, int row, int batch) {
#pragma unroll
    for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int i = 0; i < ROWS / 64; i++)
            load_box(map, to + half * ROWS * 128 + i * BOX, barrier, column + half * 64, row + i * 64, batch);
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

// Starts c = a*b' over D: 64 rows of a tile of A_ROWS and all rows of a tile of B_ROWS.
template <int A_ROWS, int B_ROWS> __device__ __forceinline__ void scores(float (&c)[B_ROWS / 2], u32 a, u32 b) {
    mma_fence();
    mma_new<0>(c, matrix(a, 16), matrix(b, 16));
#pragma unroll
    for (int k = 1; k < D / 16; k++)
        mma<0>(c, matrix(a + k / 4 * A_ROWS * 128 + k % 4 * 32, 16), matrix(b + k / 4 * B_ROWS * 128 + k % 4 * 32, 16));
    mma_commit();
}
// The same with the 64 rows in registers.
template <int B_ROWS> __device__ __forceinline__ void scores(float (&c)[B_ROWS / 2], u32 (&a)[D / 4], u32 b) {
    mma_fence();
    mma_new<0>(c, a, matrix(b, 16));
#pragma unroll
    for (int k = 1; k < D / 16; k++) mma<0>(c, a + 4 * k, matrix(b + k / 4 * B_ROWS * 128 + k % 4 * 32, 16));
    mma_commit();
}
// Starts c += p*b, where p has 64 rows in registers and the tile b has ROWS rows, which are summed over.
template <int ROWS> __device__ __forceinline__ void combine(float (&c)[D / 2], u32 (&p)[ROWS / 4], u32 b) {
    pin(p);
    mma_fence();
#pragma unroll
    for (int k = 0; k < ROWS / 16; k++) mma<1>(c, p + 4 * k, matrix(b + k * 2048, ROWS * 128));
    mma_commit();
}
// Rounds a result into the left operand of the next product.
template <int N> __device__ __forceinline__ void round_to(u32 (&to)[N / 2], float (&from)[N]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) to[i] = pack(from[2 * i], from[2 * i + 1]);
}
// This warp's 16 rows, and columns 16k..16k + 16, of a tile of ROWS rows as left operand.
template <int ROWS> __device__ __forceinline__ void load_left_at(u32* to, u32 tile, int first, int k) {
    int lane = threadIdx.x % 32, row = first + lane % 16, chunk = k % 4 * 2 + lane / 16;
    u32 at = tile + k / 4 * ROWS * 128 + row * 128 + ((chunk ^ (row & 7)) << 4);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}
template <int ROWS> __device__ __forceinline__ void load_left(u32 (&to)[D / 4], u32 tile, int first) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_left_at<ROWS>(to + 4 * k, tile, first, k);
}
// Writes 64 rows into a tile of ROWS rows, each row with its factor.
template <int ROWS> __device__ __forceinline__ void stage_rows(u32 tile, int first, float (&c)[D / 2], float factor0, float factor1) {
    int lane = threadIdx.x % 32, row = first + lane / 4;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        u32 at = tile + i / 8 * ROWS * 128 + row * 128 + (((i % 8) ^ (row & 7)) << 4) + lane % 4 * 4;
        store_shared(at, pack(c[4 * i] * factor0, c[4 * i + 1] * factor0));
        store_shared(at + 1024, pack(c[4 * i + 2] * factor1, c[4 * i + 3] * factor1));
    }
}

// The same with zeros.
template <int ROWS> __device__ __forceinline__ void stage_zeros(u32 tile, int first) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int i = 0; i < 16; i++) store_shared(tile + half * ROWS * 128 + (first + i) * 128 + lane * 4, 0);
}

// ---- spans ----

struct Span {
    int from, to;
};
// Visible keys of a query, cut to the keys that exist; (0, 0) where it sees nothing.
__device__ __forceinline__ Span span_of(const int* start, const int* end, int row, int t) {
    Span span = {0, 0};
    if (row < t) {
        int from = max(start[row], 0), to = min(max(end[row], 0), t);
        if (from < to) span = {from, to};
    }
    return span;
}

// What the loading warp says about a tile of queries.
struct Tile {
    int from[QUERIES], to[QUERIES];
    int row, head, batch;                         // its first row and where it is; head is negative behind the last tile
    int first, n;                                 // blocks of keys that some query sees
    int whole_from[GROUPS], whole_to[GROUPS];     // keys that all queries of the warpgroup see
};

// Where a tile is: long tiles first, in chunks of heads whose keys and values stay in the second-level cache.
struct Order {
    int b, t, n_heads, group, chunk;

    __device__ __forceinline__ Order(int b, int t, int n_heads, int n_kv_heads) : b(b), t(t), n_heads(n_heads) {
        group = n_heads / n_kv_heads;
        int all = b * n_kv_heads, fit = max(1, (int)(CACHE_BYTES / (4LL * t * D))), chunks = (all + fit - 1) / fit;
        chunk = (all + chunks - 1) / chunks * group;
    }
    __device__ __forceinline__ int tiles_per_head() const { return (t + QUERIES - 1) / QUERIES; }
    __device__ __forceinline__ int tiles() const { return tiles_per_head() * b * n_heads; }
    __device__ __forceinline__ int3 place(int tile) const { // row, head, batch
        int per_chunk = chunk * tiles_per_head(), begin = tile / per_chunk * chunk, rest = tile % per_chunk;
        int width = min(chunk, b * n_heads - begin), head = begin + rest % width;
        return {(tiles_per_head() - 1 - rest / width) * QUERIES, head % n_heads, head / n_heads};
    }
};

struct Spans {
    Span of[QUERIES / 32];

    __device__ __forceinline__ void fetch(const int* start, const int* end, int3 place, int t) {
        long long at = (long long)place.z * t;
#pragma unroll
        for (int i = 0; i < QUERIES / 32; i++) of[i] = span_of(start + at, end + at, place.x + i * 32 + threadIdx.x % 32, t);
    }
};

// Fills in a tile; called by one warp.
template <int KEYS> __device__ __forceinline__ void describe(Tile& tile, const Spans& spans, int3 place, int t) {
    int lane = threadIdx.x % 32, low = t, high = 0;
#pragma unroll
    for (int i = 0; i < QUERIES / 32; i++) {
        Span span = spans.of[i];
        tile.from[i * 32 + lane] = span.from;
        tile.to[i * 32 + lane] = span.to;
        if (span.from < span.to) low = min(low, span.from);
        high = max(high, span.to);
    }
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        Span a = spans.of[2 * group], b = spans.of[2 * group + 1];
        int row = place.x + group * 64 + lane;
        int from = __reduce_max_sync(~0u, max(a.from, b.from));
        int to = __reduce_min_sync(~0u, min(row < t ? a.to : t, row + 32 < t ? b.to : t));
        if (lane == 0) {
            tile.whole_from[group] = from;
            tile.whole_to[group] = to;
        }
    }
    low = __reduce_min_sync(~0u, low) / KEYS;
    high = (__reduce_max_sync(~0u, high) + KEYS - 1) / KEYS;
    if (lane == 0) {
        tile.row = place.x;
        tile.head = place.y;
        tile.batch = place.z;
        tile.first = min(low, high);
        tile.n = high - tile.first;
    }
    __syncwarp();
}

// Tiles are taken in order by whichever block is free. The last block to leave makes the counters ready for the next launch;
// launches of a kernel never overlap.
__device__ u32 tiles_taken, blocks_left;

// The work of the warp that chooses tiles, one ahead of the others: `free(turn)` waits for slot turn % 2, `full(turn)` says
// that it is filled in.
template <int KEYS, class Free, class Full>
__device__ __forceinline__ void choose_tiles(Tile* tiles, const Order& order, const int* start, const int* end, Free free, Full full) {
    int lane = threadIdx.x % 32, tile = blockIdx.x, turn = 0;
    for (;; turn++) {
        if (turn > 0) {
            if (lane == 0) tile = gridDim.x + atomicAdd(&tiles_taken, 1);
            tile = __shfl_sync(~0u, tile, 0);
        }
        if (tile >= order.tiles()) break;
        int3 place = order.place(tile);
        Spans spans;
        spans.fetch(start, end, place, order.t);
        free(turn);
        describe<KEYS>(tiles[turn & 1], spans, place, order.t);
        if (lane == 0) full(turn);
    }
    free(turn);
    if (lane == 0) {
        tiles[turn & 1].head = -1;
        full(turn);
        __threadfence();
        if (atomicAdd(&blocks_left, 1) == gridDim.x - 1) {
            tiles_taken = 0;
            blocks_left = 0;
        }
    }
}
