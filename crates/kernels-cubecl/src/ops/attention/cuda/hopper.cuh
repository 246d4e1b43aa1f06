
// What the attention kernels for Hopper share; the text of cuda/hopper.cuh comes before this one: products over a head, and the
// walk over tiles of queries.
//
// D is the head size, 64 or 128. Two warpgroups compute and one loads.

constexpr int HALVES = D / 64;
constexpr int GROUPS = 2;
constexpr int QUERIES = 64 * GROUPS;     // of a tile of queries
constexpr int CACHE_BYTES = 24 << 20;    // of the second-level cache, for tensors that many blocks read
constexpr float LOG2E = 1.4426950408889634f;
constexpr float HIDDEN = -1e34f;         // far below real scores, and finite after the factor

// A tile of ROWS rows and D columns.
template <int ROWS>
__device__ __forceinline__ void load_tile(const TensorMap& map, u32 to, u32 barrier, int column, int row, int batch) {
#pragma unroll
    for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int i = 0; i < ROWS / 64; i++)
            load_box(map, to + half * ROWS * 128 + i * BOX, barrier, column + half * 64, row + i * 64, batch);
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
        // A tile of padding takes one block of keys, all of them hidden: between tiles with output still to be stored, one without
        // any would wait for a slot that only the next tile frees.
        tile.n = max(high - tile.first, 1);
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
