// Attention forward for Hopper; the text of hopper.cuh comes before this one.
//
// Blocks of threads stay and take tile after tile of QUERIES queries of one head. One warp loads: queries into one of two
// slots, blocks of KEYS keys and values into STAGES slots. Each computing warpgroup owns 64 queries; its scores of block
// j + 1 run on the matrix units beside the weighted sum of block j, and the softmax of block j + 1 beside the latter.

constexpr int KEYS = 128;
constexpr int STAGES = 2;
constexpr float HUGE_SCORE = 4096.f; // whose rounding error as an exponent is still small
constexpr int Q_BYTES = QUERIES * D * 2, KV_BYTES = KEYS * D * 2;

struct Shared {
    Tile tiles[2];
    u64 chosen[2], q_full[2], q_free[2], k_full[STAGES], k_free[STAGES], v_full[STAGES], v_free[STAGES];
};

// Scores of hidden keys; `key` is this thread's first key relative to the block, as the spans are.
__device__ __forceinline__ void hide(float (&s)[KEYS / 2], int key0, Span a, Span b) {
    int key = key0 + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int at = key + 8 * i + j;
            if (at < a.from || at >= a.to) s[4 * i + j] = HIDDEN;
            if (at < b.from || at >= b.to) s[4 * i + 2 + j] = HIDDEN;
        }
}

struct Running {
    float most0, most1, sum0, sum1;
};

// Scores become weights relative to the running maximum; returns the factors of what was summed before.
__device__ __forceinline__ float2 soften(float (&s)[KEYS / 2], Running& run, float factor) {
    float m0 = run.most0, m1 = run.most1;
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) {
        m0 = fmaxf(m0, fmaxf(s[4 * i], s[4 * i + 1]));
        m1 = fmaxf(m1, fmaxf(s[4 * i + 2], s[4 * i + 3]));
    }
    m0 = quad_max(m0);
    m1 = quad_max(m1);
    float2 keep = {ex2((run.most0 - m0) * factor), ex2((run.most1 - m1) * factor)};
    run.most0 = m0;
    run.most1 = m1;
    // A maximum of hidden keys alone is not subtracted.
    float shift0 = m0 <= HIDDEN ? 0.f : m0 * factor, shift1 = m1 <= HIDDEN ? 0.f : m1 * factor;
    // Of two huge numbers that cancel, rounding would remain; so these are subtracted before the factor.
    if (__any_sync(~0u, fmaxf(fabsf(shift0), fabsf(shift1)) > HUGE_SCORE)) {
        float n0 = m0 <= HIDDEN ? 0.f : m0, n1 = m1 <= HIDDEN ? 0.f : m1;
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            s[4 * i] -= n0;
            s[4 * i + 1] -= n0;
            s[4 * i + 2] -= n1;
            s[4 * i + 3] -= n1;
        }
        shift0 = shift1 = 0.f;
    }
    float t0 = 0.f, t1 = 0.f;
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) {
        s[4 * i] = ex2(s[4 * i] * factor - shift0);
        s[4 * i + 1] = ex2(s[4 * i + 1] * factor - shift0);
        s[4 * i + 2] = ex2(s[4 * i + 2] * factor - shift1);
        s[4 * i + 3] = ex2(s[4 * i + 3] * factor - shift1);
        t0 += s[4 * i] + s[4 * i + 1];
        t1 += s[4 * i + 2] + s[4 * i + 3];
    }
    run.sum0 = run.sum0 * keep.x + t0;
    run.sum1 = run.sum1 * keep.y + t1;
    return keep;
}

__device__ __forceinline__ void rescale(float (&o)[D / 2], float2 keep) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        o[4 * i] *= keep.x;
        o[4 * i + 1] *= keep.x;
        o[4 * i + 2] *= keep.y;
        o[4 * i + 3] *= keep.y;
    }
}

// Bits of the largest size of a finite number of the output as it is written.
__device__ __forceinline__ u32 largest_size(float (&o)[D / 2], float factor0, float factor1) {
    u32 most = 0;
    auto look = [&](u32 pair) {
        u32 size = pair & 0x7fff7fffu;
        most = __vmaxu2(most, size & __vcmpltu2(size, 0x7f807f80u));
    };
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        look(pack(o[4 * i] * factor0, o[4 * i + 1] * factor0));
        look(pack(o[4 * i + 2] * factor1, o[4 * i + 3] * factor1));
    }
    return max(most & 0xffff0000u, most << 16);
}

// Sum and maximum of one query with its sink; returns the factor of its output.
__device__ __forceinline__ float finish(float sum, float most, bool sees, float scale, const float* sink, float* lse) {
    sum = sees ? quad_sum(sum) : (quad_sum(sum), 0.f);
    float top = sees ? most * scale : HIDDEN, keep = 1.f;
    if (sink) {
        float both = fmaxf(top, *sink);
        keep = ex2((top - both) * LOG2E);
        sum = sum * keep + ex2((*sink - both) * LOG2E);
        top = both;
    }
    if (lse && threadIdx.x % 4 == 0) *lse = top + __logf(sum);
    return sees ? keep / sum : 0.f;
}

extern "C" __global__ void __launch_bounds__(WARPGROUP*(GROUPS + 1), 1)
    attention_forward(const __grid_constant__ TensorMap qkv_map, const __grid_constant__ TensorMap out_map, const int* start,
                      const int* end, const float* sinks, float* lse, int b, int t, int n_heads, int n_kv_heads, float scale,
                      int sunk, u32* peaks, int n_peaks) {
    extern __shared__ __align__(1024) unsigned char memory[];
    u32 base = (u32)__cvta_generic_to_shared(memory);
    const u32 q_at = base, k_at = q_at + 2 * Q_BYTES, v_at = k_at + STAGES * KV_BYTES;
    Shared& shared = *(Shared*)(memory + 2 * Q_BYTES + 2 * STAGES * KV_BYTES);
    auto at = [&](u64& barrier) { return (u32)__cvta_generic_to_shared(&barrier); };
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(at(shared.chosen[i]), 1);
            barrier_init(at(shared.q_full[i]), 1);
            barrier_init(at(shared.q_free[i]), GROUPS);
        }
        for (int i = 0; i < STAGES; i++) {
            barrier_init(at(shared.k_full[i]), 1);
            barrier_init(at(shared.v_full[i]), 1);
            barrier_init(at(shared.k_free[i]), 4 * GROUPS);
            barrier_init(at(shared.v_free[i]), 4 * GROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fence_async();
    }
    __syncthreads();
    int lane = threadIdx.x % 32;
    if (threadIdx.x < WARPGROUP) {
        loading_registers();
        Order order(b, t, n_heads, n_kv_heads);
        if (threadIdx.x / 32 == 1) {
            choose_tiles<KEYS>(
                shared.tiles, order, start, end,
                [&](int turn) { if (turn > 1) barrier_wait(at(shared.q_free[turn & 1]), (turn / 2 - 1) & 1); },
                [&](int turn) { barrier_arrive(at(shared.chosen[turn & 1])); });
        } else if (threadIdx.x == 0) {
            u32 step = 0;
            for (int turn = 0;; turn++) {
                int slot = turn & 1;
                u32 full = at(shared.q_full[slot]);
                Tile& info = shared.tiles[slot];
                barrier_wait(at(shared.chosen[slot]), turn / 2 & 1);
                int head = info.head, batch = info.batch, row = info.first * KEYS, n = info.n;
                if (head < 0) {
                    barrier_arrive(full);
                    break;
                }
                int k_column = (n_heads + head / order.group) * D, v_column = k_column + n_kv_heads * D;
                barrier_expect(full, Q_BYTES);
                load_tile<QUERIES>(qkv_map, q_at + slot * Q_BYTES, full, head * D, info.row, batch);
                for (; n > 0; n--, step++, row += KEYS) {
                    int stage = step % STAGES, parity = (step / STAGES - 1) & 1;
                    if (step >= STAGES) barrier_wait(at(shared.k_free[stage]), parity);
                    barrier_expect(at(shared.k_full[stage]), KV_BYTES);
                    load_tile<KEYS>(qkv_map, k_at + stage * KV_BYTES, at(shared.k_full[stage]), k_column, row, batch);
                    if (step >= STAGES) barrier_wait(at(shared.v_free[stage]), parity);
                    barrier_expect(at(shared.v_full[stage]), KV_BYTES);
                    load_tile<KEYS>(qkv_map, v_at + stage * KV_BYTES, at(shared.v_full[stage]), v_column, row, batch);
                }
            }
        }
    } else {
        computing_registers();
        int group = threadIdx.x / WARPGROUP - 1, warp = threadIdx.x / 32 % 4;
        int own = group * 64 + warp * 16 + lane / 4;
        float factor = scale * LOG2E;
        float s[KEYS / 2], o[D / 2];
        u32 p[KEYS / 4];
        u32 step = 0;
        int turn = 0, slot = 0, n = 0, key0 = 0, whole_from = 0, whole_to = 0;
        bool owed = false; // the slot of the tile before, until its output is stored
        Span span0, span1;
        Running run;
        auto release = [&](u64& barrier) {
            if (lane == 0) barrier_arrive(at(barrier));
        };
        auto pay = [&]() {
            if (owed && threadIdx.x % WARPGROUP == 0) {
                stores_read();
                barrier_arrive(at(shared.q_free[slot ^ 1]));
            }
            owed = false;
        };
        auto queries = [&](int slot) { return q_at + slot * Q_BYTES + group * BOX; };
        // Writes the output of the tile in `slot`, in the place of its queries.
        auto write = [&](int slot, Running run, bool some) {
            Tile& info = shared.tiles[slot];
            int head = info.head, batch = info.batch, row = info.row + group * 64, own_row = info.row + own;
            const float* sink = sunk ? sinks + head : nullptr;
            float* own_lse = lse + ((long long)batch * n_heads + head) * t + own_row;
            bool sees0 = info.from[own] < info.to[own], sees1 = info.from[own + 8] < info.to[own + 8];
            float f0 = finish(run.sum0, run.most0, sees0, scale, sink, own_row < t ? own_lse : nullptr);
            float f1 = finish(run.sum1, run.most1, sees1, scale, sink, own_row + 8 < t ? own_lse + 8 : nullptr);
            // All warps of the group are done with its queries.
            named_sync(8 + group, WARPGROUP);
            if (some) {
                stage_rows<QUERIES>(queries(slot), warp * 16, o, f0, f1);
                if (n_peaks > 0) {
                    u32 size = __reduce_max_sync(~0u, largest_size(o, f0, f1));
                    if (lane == 0) atomicMax(peaks + blockIdx.x % n_peaks, size);
                }
            } else stage_zeros<QUERIES>(queries(slot), warp * 16);
            fence_async();
            named_sync(8 + group, WARPGROUP);
            if (threadIdx.x % WARPGROUP == 0) {
#pragma unroll
                for (int half = 0; half < HALVES; half++)
                    store_box(out_map, queries(slot) + half * QUERIES * 128, head * D + half * 64, row, batch);
                stores_commit();
            }
        };
        // Goes to the next tile that sees something; the output of those that do not is zero.
        auto enter = [&]() {
            for (;; turn++) {
                barrier_wait(at(shared.q_full[turn & 1]), turn / 2 & 1);
                Tile& info = shared.tiles[turn & 1];
                if (info.head < 0) return false;
                n = info.n;
                if (n > 0) break;
                write(turn & 1, {HIDDEN, HIDDEN, 0.f, 0.f}, false);
                if (threadIdx.x % WARPGROUP == 0) {
                    stores_read();
                    barrier_arrive(at(shared.q_free[turn & 1]));
                }
            }
            slot = turn++ & 1;
            Tile& info = shared.tiles[slot];
            key0 = info.first * KEYS;
            whole_from = info.whole_from[group];
            whole_to = info.whole_to[group];
            span0 = {info.from[own], info.to[own]};
            span1 = {info.from[own + 8], info.to[own + 8]};
            run = {HIDDEN, HIDDEN, 0.f, 0.f};
            return true;
        };
        auto weigh = [&]() {
            if (key0 < whole_from || key0 + KEYS > whole_to) hide(s, key0, span0, span1);
            key0 += KEYS;
            return soften(s, run, factor);
        };
        auto clear = [&]() {
#pragma unroll
            for (int i = 0; i < D / 2; i++) o[i] = 0.f;
        };
        auto keys = [&](u32 step) { return k_at + step % STAGES * KV_BYTES; };
        auto values = [&](u32 step) { return v_at + step % STAGES * KV_BYTES; };
        auto wait = [&](u64(&barriers)[STAGES], u32 step) { barrier_wait(at(barriers[step % STAGES]), step / STAGES & 1); };

        clear();
        if (group == 0) named_arrive(1, 2 * WARPGROUP);
        if (enter()) {
            wait(shared.k_full, 0);
            scores<QUERIES, KEYS>(s, queries(slot), keys(0));
            mma_wait<0>();
            pin(s);
            release(shared.k_free[0]);
            weigh();
            round_to<KEYS / 2>(p, s);
            pin(o);
            for (int left = n - 1;; left--, step++) {
                bool fresh = left == 0;
                int last_slot = slot;
                Running last_run = run;
                if (fresh) {
                    pay();
                    if (!enter()) break;
                    left = n;
                }
                wait(shared.k_full, step + 1);
                // The warpgroups take turns, so that one computes weights while the other's products run.
                named_sync(1 + group, 2 * WARPGROUP);
                scores<QUERIES, KEYS>(s, queries(slot), keys(step + 1));
                wait(shared.v_full, step);
                combine<KEYS>(o, p, values(step));
                named_arrive(2 - group, 2 * WARPGROUP);
                pay();
                mma_wait<1>();
                pin(s);
                release(shared.k_free[(step + 1) % STAGES]);
                float2 keep = weigh();
                mma_wait<0>();
                pin(o);
                release(shared.v_free[step % STAGES]);
                if (fresh) {
                    write(last_slot, last_run, true);
                    owed = true;
                    clear();
                } else {
                    rescale(o, keep);
                }
                pin(o);
                round_to<KEYS / 2>(p, s);
            }
            wait(shared.v_full, step);
            combine<KEYS>(o, p, values(step));
            mma_wait<0>();
            pin(o);
            write(slot, run, true);
        }
        if (threadIdx.x % WARPGROUP == 0) stores_done();
    }
}
