// Gradients of keys and values for Hopper; the text of hopper.cuh comes before this one.
//
// A block of threads owns KEYS keys of one key head, a computing warpgroup 64 of them, with both sums in registers. Blocks of
// ROWS queries of all query heads that share the key head pass through STAGES slots, filled by one warp (tensors) and another
// (numbers of each query). Probabilities and slopes are made transposed, so that they are left operands without a detour.

constexpr int KEYS = 64 * GROUPS;
constexpr int ROWS = 64;
constexpr int LEAST_BLOCKS = 512; // of a chunk of heads
constexpr int STAGES = D == 64 ? 4 : 3;
constexpr int KV_BYTES = KEYS * D * 2, Q_BYTES = ROWS * D * 2;

struct Numbers {
    float lse[ROWS], delta[ROWS];
    int from[ROWS], to[ROWS];
    int whole_from, whole_to, pad[2];
};
struct Shared {
    Numbers numbers[STAGES];
    u64 kv_full, full[STAGES], free[STAGES];
    int n_blocks;
};

extern "C" __global__ void __launch_bounds__(WARPGROUP*(GROUPS + 1), 1)
    attention_keys(const __grid_constant__ TensorMap qkv_map, const __grid_constant__ TensorMap dout_map,
                   const __grid_constant__ TensorMap dqkv_map, const int* start, const int* end, const float* lse,
                   const float* delta, int b, int t, int n_heads, int n_kv_heads, float scale) {
    extern __shared__ __align__(1024) unsigned char memory[];
    u32 base = (u32)__cvta_generic_to_shared(memory);
    const u32 k_at = base, v_at = k_at + KV_BYTES, rows_at = v_at + KV_BYTES;
    Shared& shared = *(Shared*)(memory + 2 * KV_BYTES + 2 * STAGES * Q_BYTES);
    auto at = [&](u64& barrier) { return (u32)__cvta_generic_to_shared(&barrier); };
    int lane = threadIdx.x % 32;
    int group_heads = n_heads / n_kv_heads;
    // The first keys have the most queries. Heads come in chunks whose queries stay in the second-level cache, but no chunk is
    // so small that its blocks leave processors idle.
    int all = b * n_kv_heads, blocks = (t + KEYS - 1) / KEYS, fit = (int)(CACHE_BYTES / (4LL * t * D * group_heads));
    fit = max(fit, (LEAST_BLOCKS + blocks - 1) / blocks);
    int chunks = (all + fit - 1) / fit, chunk = (all + chunks - 1) / chunks, per_chunk = chunk * blocks;
    int begin = blockIdx.x / per_chunk * chunk, rest = blockIdx.x % per_chunk, width = min(chunk, all - begin);
    int kv_head = (begin + rest % width) % n_kv_heads, batch = (begin + rest % width) / n_kv_heads;
    int key0 = rest / width * KEYS, block0 = key0 / ROWS;
    start += (long long)batch * t;
    end += (long long)batch * t;
    int k_column = (n_heads + kv_head) * D, v_column = k_column + n_kv_heads * D;
    if (threadIdx.x < 32) {
        if (lane == 0) {
            barrier_init(at(shared.kv_full), 1);
            for (int i = 0; i < STAGES; i++) {
                barrier_init(at(shared.full[i]), 2);
                barrier_init(at(shared.free[i]), 4 * GROUPS);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            fence_async();
            barrier_expect(at(shared.kv_full), 2 * KV_BYTES);
            load_tile<KEYS>(qkv_map, k_at, at(shared.kv_full), k_column, key0, batch);
            load_tile<KEYS>(qkv_map, v_at, at(shared.kv_full), v_column, key0, batch);
        }
        // Blocks of queries from the one beside these keys to the last whose first span begins before the end of them: starts
        // do not decrease.
        int n = 0;
        for (int i = block0 + lane; i * ROWS < t; i += 32) n += start[i * ROWS] < key0 + KEYS;
        n = __reduce_add_sync(~0u, n);
        if (lane == 0) shared.n_blocks = n;
    }
    __syncthreads();
    int n_blocks = shared.n_blocks, total = n_blocks * group_heads;

    if (threadIdx.x < WARPGROUP) {
        loading_registers();
        if (threadIdx.x == 0) {
            for (int i = 0; i < total; i++) {
                int stage = i % STAGES, head = kv_head * group_heads + i / n_blocks, row = (block0 + i % n_blocks) * ROWS;
                u32 full = at(shared.full[stage]), to = rows_at + stage * 2 * Q_BYTES;
                if (i >= STAGES) barrier_wait(at(shared.free[stage]), (i / STAGES - 1) & 1);
                barrier_expect(full, 2 * Q_BYTES);
                load_tile<ROWS>(qkv_map, to, full, head * D, row, batch);
                load_tile<ROWS>(dout_map, to + Q_BYTES, full, head * D, row, batch);
            }
        } else if (threadIdx.x / 32 == 1) {
            float l[2], d[2];
            Span spans[2];
            auto fetch = [&](int i) {
                int head = kv_head * group_heads + i / n_blocks, row = (block0 + i % n_blocks) * ROWS;
                long long item = ((long long)batch * n_heads + head) * t;
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    int own = row + lane + 32 * k;
                    spans[k] = span_of(start, end, own, t);
                    l[k] = own < t ? lse[item + own] * LOG2E : 0.f;
                    d[k] = own < t ? delta[item + own] : 0.f;
                }
            };
            if (total > 0) fetch(0);
            for (int i = 0; i < total; i++) {
                int stage = i % STAGES;
                Numbers& numbers = shared.numbers[stage];
                if (i >= STAGES) barrier_wait(at(shared.free[stage]), (i / STAGES - 1) & 1);
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    numbers.lse[lane + 32 * k] = l[k];
                    numbers.delta[lane + 32 * k] = d[k];
                    numbers.from[lane + 32 * k] = spans[k].from;
                    numbers.to[lane + 32 * k] = spans[k].to;
                }
                int from = __reduce_max_sync(~0u, max(spans[0].from, spans[1].from));
                int to = __reduce_min_sync(~0u, min(spans[0].to, spans[1].to));
                if (lane == 0) {
                    numbers.whole_from = from;
                    numbers.whole_to = to;
                }
                __syncwarp();
                if (lane == 0) barrier_arrive(at(shared.full[stage]));
                if (i + 1 < total) fetch(i + 1);
            }
        }
    } else {
        computing_registers();
        int group = threadIdx.x / WARPGROUP - 1, warp = threadIdx.x / 32 % 4;
        int key = key0 + group * 64 + warp * 16 + lane / 4;
        float factor = scale * LOG2E;
        float s[ROWS / 2], dp[ROWS / 2], dk[D / 2], dv[D / 2];
        u32 p[ROWS / 4], ds[ROWS / 4];
        const u32 k = k_at + group * BOX, v = v_at + group * BOX;
#pragma unroll
        for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0.f;
        pin(dk);
        pin(dv);
        auto rows = [&](int i) { return rows_at + i % STAGES * 2 * Q_BYTES; };
        auto wait = [&](int i) { barrier_wait(at(shared.full[i % STAGES]), i / STAGES & 1); };
        auto probabilities = [&](int i) {
            Numbers& numbers = shared.numbers[i % STAGES];
            int first = key0 + group * 64;
            bool masked = numbers.whole_from > first || numbers.whole_to < first + 64;
#pragma unroll
            for (int i = 0; i < ROWS / 8; i++) {
                float2 l = *(float2*)&numbers.lse[8 * i + lane % 4 * 2];
                s[4 * i] = ex2(s[4 * i] * factor - l.x);
                s[4 * i + 1] = ex2(s[4 * i + 1] * factor - l.y);
                s[4 * i + 2] = ex2(s[4 * i + 2] * factor - l.x);
                s[4 * i + 3] = ex2(s[4 * i + 3] * factor - l.y);
            }
            if (masked) {
#pragma unroll
                for (int i = 0; i < ROWS / 8; i++) {
                    int2 from = *(int2*)&numbers.from[8 * i + lane % 4 * 2], to = *(int2*)&numbers.to[8 * i + lane % 4 * 2];
                    if (key < from.x || key >= to.x) s[4 * i] = 0.f;
                    if (key < from.y || key >= to.y) s[4 * i + 1] = 0.f;
                    if (key + 8 < from.x || key + 8 >= to.x) s[4 * i + 2] = 0.f;
                    if (key + 8 < from.y || key + 8 >= to.y) s[4 * i + 3] = 0.f;
                }
            }
        };
        auto slopes = [&](int i) {
            Numbers& numbers = shared.numbers[i % STAGES];
#pragma unroll
            for (int i = 0; i < ROWS / 8; i++) {
                float2 d = *(float2*)&numbers.delta[8 * i + lane % 4 * 2];
                ds[2 * i] = pack(s[4 * i] * (dp[4 * i] - d.x), s[4 * i + 1] * (dp[4 * i + 1] - d.y));
                ds[2 * i + 1] = pack(s[4 * i + 2] * (dp[4 * i + 2] - d.x), s[4 * i + 3] * (dp[4 * i + 3] - d.y));
            }
        };
        auto release = [&](int i) {
            if (lane == 0) barrier_arrive(at(shared.free[i % STAGES]));
        };
        barrier_wait(at(shared.kv_full), 0);
        // Short heads leave registers for the keys and values, which then need not be read again.
        u32 k_left[D / 4], v_left[D / 4];
        if (D == 64) {
            load_left<KEYS>(k_left, k_at, group * 64 + warp * 16);
            load_left<KEYS>(v_left, v_at, group * 64 + warp * 16);
        }
        auto score = [&](int i) {
            if (D == 64) scores<ROWS>(s, k_left, rows(i));
            else scores<KEYS, ROWS>(s, k, rows(i));
        };
        auto slope = [&](int i) {
            if (D == 64) scores<ROWS>(dp, v_left, rows(i) + Q_BYTES);
            else scores<KEYS, ROWS>(dp, v, rows(i) + Q_BYTES);
        };
        if (total > 0) {
            wait(0);
            score(0);
            slope(0);
            mma_wait<1>();
            pin(s);
            probabilities(0);
            round_to<ROWS / 2>(p, s);
            combine<ROWS>(dv, p, rows(0) + Q_BYTES);
            mma_wait<0>();
            pin(dp);
            slopes(0);
            if (group == 0) named_arrive(1, 2 * WARPGROUP);
            for (int i = 1; i < total; i++) {
                wait(i);
                // The warpgroups take turns, so that one computes probabilities while the other's products run.
                named_sync(1 + group, 2 * WARPGROUP);
                combine<ROWS>(dk, ds, rows(i - 1));
                score(i);
                slope(i);
                named_arrive(2 - group, 2 * WARPGROUP);
                mma_wait<1>();
                pin(s);
                release(i - 1);
                probabilities(i);
                round_to<ROWS / 2>(p, s);
                combine<ROWS>(dv, p, rows(i) + Q_BYTES);
                // Long heads have no registers for slopes beside probabilities that are still in use.
                mma_wait<D == 64 ? 1 : 0>();
                pin(dp);
                slopes(i);
            }
            combine<ROWS>(dk, ds, rows(total - 1));
            mma_wait<0>();
        }
        pin(dk);
        pin(dv);
        // All warps of the group are done with its keys and values, whose place the gradients take.
        named_sync(8 + group, WARPGROUP);
        stage_rows<KEYS>(k, warp * 16, dk, scale, scale);
        stage_rows<KEYS>(v, warp * 16, dv, 1.f, 1.f);
        fence_async();
        named_sync(8 + group, WARPGROUP);
        if (threadIdx.x % WARPGROUP == 0) {
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                store_box(dqkv_map, k + half * KEYS * 128, k_column + half * 64, key0 + group * 64, batch);
                store_box(dqkv_map, v + half * KEYS * 128, v_column + half * 64, key0 + group * 64, batch);
            }
            stores_commit();
            stores_done();
        }
    }
}
