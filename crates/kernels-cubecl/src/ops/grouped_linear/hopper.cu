// Linear layers per expert for Hopper; the text of cuda/hopper.cuh comes before this one.
//
// Expert e owns the sorted rows offsets[e]..offsets[e + 1]. Blocks of threads stay and take tile after tile of 128 by WIDTH
// results. One thread loads boxes of 64 rows and columns into STAGES slots; two warpgroups multiply, 64 rows of results each.
//
// For rows by experts two blocks work side by side: on neighbouring rows, and then each loads one half of the weight's tile for
// both; or, where an expert has no such rows left, on neighbouring columns.
//
// Preprocessor: WIDTH (64, 128, 192 or 256), TURNED (1: the weight's rows are summed over), and for the gradient of the weight
// RESULT_F32 (1: its results are float and not bf16).

typedef unsigned short u16;

constexpr int GROUPS = 2, TILE = 64 * GROUPS;
constexpr int STAGES = WIDTH == 256 ? 4 : WIDTH == 192 ? 5 : WIDTH == 128 ? 6 : 8;
constexpr int A_BYTES = TILE * 128, B_BYTES = WIDTH * 128, STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int MAX_EXPERTS = 512;

// ---- products of WIDTH columns ----

#define R96(x) R16(x, 0), R16(x, 16), R16(x, 32), R16(x, 48), R16(x, 64), R16(x, 80)
#define R128(x) R96(x), R16(x, 96), R16(x, 112)
#define L96 L64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define L128 L96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// c += a*b; TA and TB: whether columns of the operand are summed over (0) or rows (1).
#define PRODUCT(N, COUNT, LIST, REGISTERS, A, B, KA, KB)                                                                     \
    template <int TA, int TB> __device__ __forceinline__ void product(float (&c)[COUNT], u64 a, u64 b) {                     \
        asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0;\n"                                                                 \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, %" #A ", %" #B ", p, 1, 1, %" #KA ", %" #KB ";}\n" \
                     : REGISTERS(c) : "l"(a), "l"(b), "n"(TA), "n"(TB));                                                     \
    }
PRODUCT(64, 32, L32, R32, 32, 33, 34, 35)
PRODUCT(128, 64, L64, R64, 64, 65, 66, 67)
PRODUCT(192, 96, L96, R96, 96, 97, 98, 99)
PRODUCT(256, 128, L128, R128, 128, 129, 130, 131)

// ---- walk ----

struct Shared {
    u64 full[STAGES], free[STAGES];
    int offsets[MAX_EXPERTS + 2];  // the last group is that of the rows behind the experts
    int first[MAX_EXPERTS + 2];    // tile that a group begins with
};

// Fills in offsets, cut to the rows that exist, and first tiles; `tiles(rows)` is the number of a group's tiles. The last group
// is empty unless `rest`.
template <class Tiles>
__device__ __forceinline__ void plan(Shared& shared, const int* offsets, int n_experts, int m, bool rest, Tiles tiles) {
    for (int i = threadIdx.x; i <= n_experts + 1; i += blockDim.x)
        shared.offsets[i] = i > n_experts && rest ? m : min(max(offsets[min(i, n_experts)], 0), m);
    __syncthreads();
    if (threadIdx.x < 32) {
        int sum = 0;
        for (int base = 0; base <= n_experts; base += 32) {
            int e = base + threadIdx.x;
            int n = e <= n_experts ? tiles(e, shared.offsets[e + 1] - shared.offsets[e]) : 0, all = n;
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                int below = __shfl_up_sync(~0u, all, step);
                if (threadIdx.x >= step) all += below;
            }
            if (e <= n_experts) shared.first[e] = sum + all - n;
            sum += __shfl_sync(~0u, all, 31);
        }
        if (threadIdx.x == 0) shared.first[n_experts + 1] = sum;
    }
    __syncthreads();
}

struct Turn {
    u32 stage = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

__device__ __forceinline__ u32 address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

__device__ __forceinline__ void make_barriers(Shared& shared, int blocks) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(address(&shared.full[i]), 1);
            barrier_init(address(&shared.free[i]), 4 * GROUPS * blocks);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_async();
    }
}

// Lets go of a slot, of `blocks` blocks side by side; called by every warp that reads it.
template <int BLOCKS> __device__ __forceinline__ void let_go(Shared& shared, u32 stage) {
    u32 lane = threadIdx.x % 32, barrier = address(&shared.free[stage]);
    if (BLOCKS == 1) {
        if (lane == 0) barrier_arrive(barrier);
    } else if (lane < BLOCKS) {
        asm volatile("{.reg .b32 remote;\n"
                     "mapa.shared::cluster.u32 remote, %0, %1;\n"
                     "mbarrier.arrive.shared::cluster.b64 _, [remote];}\n" ::"r"(barrier), "r"(lane) : "memory");
    }
}
__device__ __forceinline__ u32 place_in_pair() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void meet_pair() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// As load_box, into the same place of both blocks.
__device__ __forceinline__ void load_box_twice(const TensorMap& map, u32 to, u32 barrier, int column, int row, int batch) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::
            "r"(to), "l"(&map), "r"(barrier), "r"(column), "r"(row), "r"(batch), "h"((u16)3) : "memory");
}

// c = the products of `steps` slots; `ready(i)` is called before slot i is read.
template <int BLOCKS, int TA, int TB, class Ready>
__device__ __forceinline__ void multiply(Shared& shared, float (&c)[WIDTH / 2], u32 tiles, Turn& turn, int group, int steps, Ready ready) {
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) c[i] = 0.f;
    u32 before = 0;
    for (int i = 0; i < steps; i++, turn.next()) {
        barrier_wait(address(&shared.full[turn.stage]), turn.parity);
        ready(i);
        u32 a = tiles + turn.stage * STAGE_BYTES + group * BOX, b = tiles + turn.stage * STAGE_BYTES + A_BYTES;
        mma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            product<TA, TB>(c, matrix(a + k * (TA ? 2048 : 32), BOX), matrix(b + k * (TB ? 2048 : 32), BOX));
        mma_commit();
        mma_wait<1>();
        if (i > 0) let_go<BLOCKS>(shared, before);
        before = turn.stage;
    }
    mma_wait<0>();
    let_go<BLOCKS>(shared, before);
    pin(c);
}

// ---- rows by experts: y = a*b' or a*b, plus low*up' or low*up, plus a bias ----

// Four neighbouring threads hold 2 columns of 4 blocks of 8; afterwards each has a block of its own.
__device__ __forceinline__ void turn_quad(u32 (&v)[4]) {
    bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
    u32 a = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1), b = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 1);
    if (odd) v[0] = a, v[2] = b;
    else v[1] = a, v[3] = b;
    a = __shfl_xor_sync(~0u, high ? v[0] : v[2], 2), b = __shfl_xor_sync(~0u, high ? v[1] : v[3], 2);
    if (high) v[0] = a, v[1] = b;
    else v[2] = a, v[3] = b;
}

__device__ __forceinline__ float bf16(const u16* at) { return __uint_as_float((u32)*at << 16); }

// What a block does: rows from `row` to `end` and columns from `column`, or nothing where there are none.
struct Work {
    int expert, row, end, column;
    bool rows_apart;  // its neighbour has other rows and the same columns
    __device__ __forceinline__ int halves() const { return end - row > 64 ? 2 : 1; }
};

// Pairs of tiles of a group: pairs of rows while there are more than TILE, then pairs of columns.
__device__ __forceinline__ int pairs_of_rows(int rows) { return rows / (2 * TILE) + (rows % (2 * TILE) > TILE); }
__device__ __forceinline__ int pairs(int rows, int columns) {
    int high = pairs_of_rows(rows);
    return high * columns + (rows > high * 2 * TILE ? (columns + 1) / 2 : 0);
}
__device__ __forceinline__ Work work_of(const Shared& shared, int& e, int pair, int columns, u32 place) {
    while (pair >= shared.first[e + 1]) e++;
    int begin = shared.offsets[e], end = shared.offsets[e + 1], high = pairs_of_rows(end - begin), at = pair - shared.first[e];
    if (at < high * columns) return {e, begin + (at % high * 2 + (int)place) * TILE, end, at / high * WIDTH, true};
    return {e, begin + high * 2 * TILE, end, ((at - high * columns) * 2 + (int)place) * WIDTH, false};
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(WARPGROUP*(GROUPS + 1), 1)
    grouped_rows(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                 const __grid_constant__ TensorMap low_map, const __grid_constant__ TensorMap up_map, const int* offsets,
                 const u16* bias, u16* out, int n_experts, int m, int n, int k, int rank, int biased, int rest) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const u32 tiles = address(memory), place = place_in_pair();
    Shared& shared = *(Shared*)(memory + STAGES * STAGE_BYTES);
    const int columns = (n + WIDTH - 1) / WIDTH, main_steps = (k + 63) / 64, steps = main_steps + (rank + 63) / 64;
    make_barriers(shared, 2);
    plan(shared, offsets, n_experts, m, rest, [=](int, int rows) { return pairs(max(rows, 0), columns); });
    meet_pair();
    const int n_pairs = shared.first[n_experts + 1], first_pair = blockIdx.x / 2, stride = gridDim.x / 2;
    if (threadIdx.x < WARPGROUP) {
        loading_registers();
        if (threadIdx.x == 0) {
            Turn turn;
            for (int pair = first_pair, e = 0; pair < n_pairs; pair += stride) {
                Work work = work_of(shared, e, pair, columns, place);
                if (e == n_experts) break;
                // Columns of nobody are still loaded, as zeros, so that both blocks take the same steps.
                for (int i = 0; i < steps; i++, turn.next()) {
                    u32 full = address(&shared.full[turn.stage]), to = tiles + turn.stage * STAGE_BYTES;
                    barrier_wait(address(&shared.free[turn.stage]), turn.parity ^ 1);
                    barrier_expect(full, work.halves() * BOX + B_BYTES);
                    bool extra = i >= main_steps;
                    const TensorMap &a = extra ? low_map : a_map, &b = extra ? up_map : b_map;
                    int depth = (extra ? i - main_steps : i) * 64;
                    for (int half = 0; half < work.halves(); half++)
                        load_box(a, to + half * BOX, full, depth, work.row + half * 64, 0);
#pragma unroll
                    for (int j = 0; j < WIDTH / 64; j++) {
                        u32 box = to + A_BYTES + j * BOX;
                        int column = work.column + j * 64, x = TURNED ? column : depth, y = TURNED ? depth : column;
                        if (!work.rows_apart) load_box(b, box, full, x, y, e);
                        else if (j % 2 == place) load_box_twice(b, box, full, x, y, e);
                    }
                }
            }
        }
        __syncwarp();
        meet_pair();
        return;
    }
    computing_registers();
    const int group = threadIdx.x / WARPGROUP - 1, lane = threadIdx.x % 32, warp = threadIdx.x % WARPGROUP / 32;
    Turn turn;
    for (int pair = first_pair, e = 0; pair < n_pairs; pair += stride) {
        Work work = work_of(shared, e, pair, columns, place);
        int row = work.row + group * 64, end = work.end, column = work.column;
        int first = row + warp * 16 + lane / 4;
        if (e == n_experts) {
            // Rows without an expert.
            for (int i = 0; i < 16; i++)
                for (int col = column + lane * 8; col < min(column + WIDTH, n) && row + warp * 16 + i < end; col += 256)
                    *(uint4*)(out + (size_t)(row + warp * 16 + i) * n + col) = make_uint4(0, 0, 0, 0);
            continue;
        }
        if (row >= end || column >= n) {
            for (int i = 0; i < steps; i++, turn.next()) {
                barrier_wait(address(&shared.full[turn.stage]), turn.parity);
                let_go<2>(shared, turn.stage);
            }
            continue;
        }
        float c[WIDTH / 2];
        multiply<2, 0, TURNED>(shared, c, tiles, turn, group, steps, [](int) {});
        const u16* own = bias + (size_t)e * n;
#pragma unroll
        for (int block = 0; block < WIDTH / 32; block++) {
            u32 v0[4], v1[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int i = (block * 4 + j) * 4, col = column + block * 32 + j * 8 + lane % 4 * 2;
                float low = 0.f, high = 0.f;
                if (biased && col < n) {
                    u32 both = *(const u32*)(own + col);
                    low = low_half(both);
                    high = high_half(both);
                }
                v0[j] = pack(c[i] + low, c[i + 1] + high);
                v1[j] = pack(c[i + 2] + low, c[i + 3] + high);
            }
            turn_quad(v0);
            turn_quad(v1);
            int col = column + block * 32 + lane % 4 * 8;
            if (col < n) {
                if (first < end) *(uint4*)(out + (size_t)first * n + col) = make_uint4(v0[0], v0[1], v0[2], v0[3]);
                if (first + 8 < end) *(uint4*)(out + (size_t)(first + 8) * n + col) = make_uint4(v1[0], v1[1], v1[2], v1[3]);
            }
        }
    }
    meet_pair();
}

// ---- gradient of the weights: out[e] = a'*b over the rows of e ----

#if RESULT_F32
typedef float Result;
__device__ __forceinline__ float widen(const float* at) { return *at; }
__device__ __forceinline__ void put(float* at, float x) { *at = x; }
#else
typedef u16 Result;
__device__ __forceinline__ float widen(const u16* at) { return bf16(at); }
__device__ __forceinline__ void put(u16* at, float x) { *at = (u16)pack(x, 0.f); }
#endif

// Rows of a box from `valid` on become zeros; called by `threads` threads.
__device__ __forceinline__ void clear_rows(u32 box, int valid, int thread, int threads) {
    for (int i = valid * 32 + thread; i < 64 * 32; i += threads) store_shared(box + i * 4, 0);
}

// Writes this thread's results, whose first is at `row` and `col`.
__device__ __forceinline__ void put_tile(Result* out, float (&c)[WIDTH / 2], int row, int col, int width, int n, int flipped, int onto) {
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) {
        int r = row + i % 4 / 2 * 8, k = col + i / 4 * 8 + i % 2;
        if (r < width && k < n) {
            Result* to = out + (flipped ? (size_t)k * width + r : (size_t)r * n + k);
            put(to, onto ? widen(to) + c[i] : c[i]);
        }
    }
}

// `a` [m, width], `b` [m, n]; out [experts, width, n], or [experts, n, width] where `flipped`.
extern "C" __global__ void __launch_bounds__(WARPGROUP*(GROUPS + 1), 1)
    grouped_weights(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map, const int* offsets,
                    Result* out, int n_experts, int m, int width, int n, int flipped, int onto) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const u32 tiles = address(memory);
    Shared& shared = *(Shared*)(memory + STAGES * STAGE_BYTES);
    const int columns = (n + WIDTH - 1) / WIDTH, high = (width + TILE - 1) / TILE, per_expert = columns * high;
    make_barriers(shared, 1);
    plan(shared, offsets, n_experts, m, false, [=](int e, int) { return e < n_experts ? per_expert : 0; });
    const int n_tiles = n_experts * per_expert;
    if (threadIdx.x < WARPGROUP) {
        loading_registers();
        if (threadIdx.x > 0) return;
        Turn turn;
        for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
            int e = tile / per_expert, at = tile % per_expert, top = at % high * TILE, column = at / high * WIDTH;
            for (int row = shared.offsets[e]; row < shared.offsets[e + 1]; row += 64, turn.next()) {
                u32 full = address(&shared.full[turn.stage]), to = tiles + turn.stage * STAGE_BYTES;
                barrier_wait(address(&shared.free[turn.stage]), turn.parity ^ 1);
                barrier_expect(full, STAGE_BYTES);
                for (int half = 0; half < GROUPS; half++) load_box(a_map, to + half * BOX, full, top + half * 64, row, 0);
#pragma unroll
                for (int j = 0; j < WIDTH / 64; j++) load_box(b_map, to + A_BYTES + j * BOX, full, column + j * 64, row, 0);
            }
        }
        return;
    }
    computing_registers();
    const int group = threadIdx.x / WARPGROUP - 1, lane = threadIdx.x % 32, warp = threadIdx.x % WARPGROUP / 32;
    Turn turn;
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        int e = tile / per_expert, at = tile % per_expert, top = at % high * TILE + group * 64, column = at / high * WIDTH;
        int begin = shared.offsets[e], end = shared.offsets[e + 1];
        float c[WIDTH / 2];
        if (begin >= end) {
            if (onto) continue;
#pragma unroll
            for (int i = 0; i < WIDTH / 2; i++) c[i] = 0.f;
        } else {
            multiply<1, 1, 1>(shared, c, tiles, turn, group, (end - begin + 63) / 64, [&](int i) {
                int valid = end - begin - i * 64;
                if (valid >= 64) return;
                // What follows belongs to the next expert.
                u32 at = tiles + turn.stage * STAGE_BYTES, thread = threadIdx.x - WARPGROUP;
                for (int box = 0; box < STAGE_BYTES / BOX; box++) clear_rows(at + box * BOX, valid, thread, GROUPS * WARPGROUP);
                fence_async();
                named_sync(8, GROUPS * WARPGROUP);
            });
        }
        put_tile(out + (size_t)e * width * n, c, top + warp * 16 + lane / 4, column + lane % 4 * 2, width, n, flipped, onto);
    }
}
