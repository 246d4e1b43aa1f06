// Gradient of the queries for Hopper, and delta; the text of hopper.cuh comes before this one.
//
// Blocks of threads stay and take tile after tile of QUERIES queries of one head. One warp loads. Each computing warpgroup owns
// 64 queries; they and their upstream gradient stay in registers while blocks of KEYS keys and values pass. Scores and slopes
// of block j + 1 are started together with the sum of block j.

constexpr int KEYS = 64;
constexpr int STAGES = D == 64 ? 6 : 4;
constexpr int Q_BYTES = QUERIES * D * 2, KV_BYTES = KEYS * D * 2;

struct Shared {
    Tile tiles[2];
    u64 chosen[2], read[2], q_full, q_free, out_full, out_free, full[STAGES], free[STAGES];
};

extern "C" __global__ void __launch_bounds__(WARPGROUP*(GROUPS + 1), 1)
    attention_queries(const __grid_constant__ TensorMap qkv_map, const __grid_constant__ TensorMap dout_map,
                      const __grid_constant__ TensorMap out_map, const __grid_constant__ TensorMap dqkv_map, const int* start,
                      const int* end, const float* lse, float* delta, int b, int t, int n_heads, int n_kv_heads, float scale) {
    extern __shared__ __align__(1024) unsigned char memory[];
    // The output comes in where the gradient goes out.
    u32 base = (u32)__cvta_generic_to_shared(memory);
    const u32 q_at = base, do_at = q_at + Q_BYTES, out_at = do_at + Q_BYTES, kv_at = out_at + Q_BYTES;
    Shared& shared = *(Shared*)(memory + 3 * Q_BYTES + 2 * STAGES * KV_BYTES);
    auto at = [&](u64& barrier) { return (u32)__cvta_generic_to_shared(&barrier); };
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            barrier_init(at(shared.chosen[i]), 1);
            barrier_init(at(shared.read[i]), 4 * GROUPS);
        }
        barrier_init(at(shared.q_full), 1);
        barrier_init(at(shared.q_free), 4 * GROUPS);
        barrier_init(at(shared.out_full), 1);
        barrier_init(at(shared.out_free), GROUPS);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(at(shared.full[i]), 1);
            barrier_init(at(shared.free[i]), 4 * GROUPS);
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
                [&](int turn) { if (turn > 1) barrier_wait(at(shared.read[turn & 1]), (turn / 2 - 1) & 1); },
                [&](int turn) { barrier_arrive(at(shared.chosen[turn & 1])); });
        } else if (threadIdx.x == 0) {
            u32 step = 0;
            for (int turn = 0;; turn++) {
                Tile& info = shared.tiles[turn & 1];
                barrier_wait(at(shared.chosen[turn & 1]), turn / 2 & 1);
                int head = info.head, batch = info.batch, row = info.row, key = info.first * KEYS, n = info.n;
                if (turn > 0) barrier_wait(at(shared.q_free), (turn - 1) & 1);
                if (head < 0) {
                    barrier_arrive(at(shared.q_full));
                    break;
                }
                int k_column = (n_heads + head / order.group) * D, v_column = k_column + n_kv_heads * D;
                barrier_expect(at(shared.q_full), 2 * Q_BYTES);
                load_tile<QUERIES>(qkv_map, q_at, at(shared.q_full), head * D, row, batch);
                load_tile<QUERIES>(dout_map, do_at, at(shared.q_full), head * D, row, batch);
                // The first blocks of keys go before the output, which has to wait for the gradient of the tile before.
                int early = min(n, STAGES - 1);
                for (int j = 0; j <= n; j++) {
                    if (j == early) {
                        if (turn > 0) barrier_wait(at(shared.out_free), (turn - 1) & 1);
                        barrier_expect(at(shared.out_full), Q_BYTES);
                        load_tile<QUERIES>(out_map, out_at, at(shared.out_full), head * D, row, batch);
                    }
                    if (j == n) break;
                    int stage = step % STAGES;
                    u32 keys = kv_at + stage * 2 * KV_BYTES, full = at(shared.full[stage]);
                    if (step >= STAGES) barrier_wait(at(shared.free[stage]), (step / STAGES - 1) & 1);
                    barrier_expect(full, 2 * KV_BYTES);
                    load_tile<KEYS>(qkv_map, keys, full, k_column, key, batch);
                    load_tile<KEYS>(qkv_map, keys + KV_BYTES, full, v_column, key, batch);
                    step++;
                    key += KEYS;
                }
            }
        }
    } else {
        computing_registers();
        int group = threadIdx.x / WARPGROUP - 1, warp = threadIdx.x / 32 % 4;
        int own = group * 64 + warp * 16 + lane / 4;
        float factor = scale * LOG2E;
        float s[KEYS / 2], dp[KEYS / 2], dq[D / 2];
        u32 q[D / 4], dout[D / 4], ds[KEYS / 4];
        u32 step = 0;
        int turn = 0, n = 0, key0 = 0, whole_from = 0, whole_to = 0;
        float lse0, lse1, delta0, delta1;
        Span span0, span1;
        int3 place; // row, head, batch
        bool owed = false; // the place of the output, until the gradient of the tile before is stored from there
        const u32 out_rows = out_at + group * BOX;
        auto release = [&](u64& barrier) {
            if (lane == 0) barrier_arrive(at(barrier));
        };
        auto pay = [&]() {
            if (owed && threadIdx.x % WARPGROUP == 0) {
                stores_read();
                barrier_arrive(at(shared.out_free));
            }
            owed = false;
        };
        auto keys = [&](u32 step) { return kv_at + step % STAGES * 2 * KV_BYTES; };
        auto wait = [&](u32 step) { barrier_wait(at(shared.full[step % STAGES]), step / STAGES & 1); };
        // Writes the gradient, in the place of the output.
        auto write = [&](int3 place, bool some) {
            // All warps of the group have read their rows of the output.
            named_sync(8 + group, WARPGROUP);
            if (some) stage_rows<QUERIES>(out_rows, warp * 16, dq, scale, scale);
            else stage_zeros<QUERIES>(out_rows, warp * 16);
            fence_async();
            named_sync(8 + group, WARPGROUP);
            if (threadIdx.x % WARPGROUP == 0) {
#pragma unroll
                for (int half = 0; half < HALVES; half++)
                    store_box(dqkv_map, out_rows + half * QUERIES * 128, place.y * D + half * 64, place.x + group * 64, place.z);
                stores_commit();
            }
            owed = true;
        };
        // Goes to the next tile that sees something; the gradient of those that do not is zero.
        auto enter = [&]() {
            for (;;) {
                barrier_wait(at(shared.q_full), turn & 1);
                Tile& info = shared.tiles[turn & 1];
                if (info.head < 0) return false;
                place = {info.row, info.head, info.batch};
                n = info.n;
                key0 = info.first * KEYS;
                whole_from = info.whole_from[group];
                whole_to = info.whole_to[group];
                span0 = {info.from[own], info.to[own]};
                span1 = {info.from[own + 8], info.to[own + 8]};
                int row0 = place.x + own, row1 = row0 + 8;
                long long item = ((long long)place.z * n_heads + place.y) * t;
                lse0 = row0 < t ? lse[item + row0] * LOG2E : 0.f;
                lse1 = row1 < t ? lse[item + row1] * LOG2E : 0.f;
                load_left<QUERIES>(q, q_at, group * 64 + warp * 16);
                load_left<QUERIES>(dout, do_at, group * 64 + warp * 16);
                __syncwarp();
                release(shared.q_free);
                release(shared.read[turn & 1]);
                barrier_wait(at(shared.out_full), turn++ & 1);
                delta0 = delta1 = 0.f;
#pragma unroll
                for (int k = 0; k < D / 16; k++) {
                    u32 out[4];
                    load_left_at<QUERIES>(out, out_at, group * 64 + warp * 16, k);
#pragma unroll
                    for (int i = 0; i < 4; i += 2) {
                        u32 a = dout[4 * k + i], b = dout[4 * k + i + 1];
                        delta0 += low_half(out[i]) * low_half(a) + high_half(out[i]) * high_half(a);
                        delta1 += low_half(out[i + 1]) * low_half(b) + high_half(out[i + 1]) * high_half(b);
                    }
                }
                delta0 = quad_sum(delta0);
                delta1 = quad_sum(delta1);
                if (lane % 4 == 0 && row0 < t) delta[item + row0] = delta0;
                if (lane % 4 == 0 && row1 < t) delta[item + row1] = delta1;
                if (n > 0) return true;
                write(place, false);
                pay();
            }
        };
        auto probabilities = [&]() {
#pragma unroll
            for (int i = 0; i < KEYS / 8; i++) {
                s[4 * i] = ex2(s[4 * i] * factor - lse0);
                s[4 * i + 1] = ex2(s[4 * i + 1] * factor - lse0);
                s[4 * i + 2] = ex2(s[4 * i + 2] * factor - lse1);
                s[4 * i + 3] = ex2(s[4 * i + 3] * factor - lse1);
            }
            if (key0 < whole_from || key0 + KEYS > whole_to) {
                int key = key0 + lane % 4 * 2;
#pragma unroll
                for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        int at = key + 8 * i + j;
                        if (at < span0.from || at >= span0.to) s[4 * i + j] = 0.f;
                        if (at < span1.from || at >= span1.to) s[4 * i + 2 + j] = 0.f;
                    }
            }
            key0 += KEYS;
        };
        auto slopes = [&]() {
#pragma unroll
            for (int i = 0; i < KEYS / 8; i++) {
                ds[2 * i] = pack(s[4 * i] * (dp[4 * i] - delta0), s[4 * i + 1] * (dp[4 * i + 1] - delta0));
                ds[2 * i + 1] = pack(s[4 * i + 2] * (dp[4 * i + 2] - delta1), s[4 * i + 3] * (dp[4 * i + 3] - delta1));
            }
        };
        auto clear = [&]() {
#pragma unroll
            for (int i = 0; i < D / 2; i++) dq[i] = 0.f;
        };
        clear();
        if (group == 0) named_arrive(1, 2 * WARPGROUP);
        if (enter()) {
            // Nothing is written in the place of the first output, once all warps of the group have read it.
            named_sync(8 + group, WARPGROUP);
            owed = true;
            wait(0);
            scores<KEYS>(s, q, keys(0));
            scores<KEYS>(dp, dout, keys(0) + KV_BYTES);
            mma_wait<1>();
            pin(s);
            probabilities();
            mma_wait<0>();
            pin(dp);
            slopes();
            pin(dq);
            for (int left = n - 1;; left--, step++) {
                bool fresh = left == 0;
                int3 last = place;
                if (fresh) {
                    pay();
                    if (!enter()) break;
                    left = n;
                }
                wait(step + 1);
                // The warpgroups take turns, so that one computes slopes while the other's products run.
                named_sync(1 + group, 2 * WARPGROUP);
                scores<KEYS>(s, q, keys(step + 1));
                combine<KEYS>(dq, ds, keys(step));
                scores<KEYS>(dp, dout, keys(step + 1) + KV_BYTES);
                named_arrive(2 - group, 2 * WARPGROUP);
                pay();
                mma_wait<2>();
                pin(s);
                probabilities();
                mma_wait<0>();
                pin(dp);
                pin(dq);
                release(shared.free[step % STAGES]);
                slopes();
                if (fresh) {
                    write(last, true);
                    clear();
                    pin(dq);
                }
            }
            combine<KEYS>(dq, ds, keys(step));
            mma_wait<0>();
            pin(dq);
            write(place, true);
        }
        if (threadIdx.x % WARPGROUP == 0) stores_done();
    }
}
