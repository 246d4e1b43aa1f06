// Attention of one new query per row over a cache: bound by reading keys and values, each of which is read once.
//
// D     columns of a head, 64 or 128
// G     query heads of a block; they share one key head
// BF16  elements are bf16; f32 otherwise
//
// A block is G query heads of one row and one part of the row's keys. A lane reads 16 bytes, so a few lanes hold a key and a
// warp several of them; each such team of lanes has a running softmax of its own. The teams meet in shared memory in a fixed
// order. Where the keys are in several parts, attention_decode_parts puts them together, again in order.

#ifdef BF16
typedef unsigned short T;
#else
typedef float T;
#endif

constexpr int WIDE = 16 / sizeof(T);     // elements of a load
constexpr int LANES = D / WIDE;          // lanes of a team
constexpr int TEAMS = 32 / LANES;        // teams of a warp
constexpr int WARPS = 4;
constexpr int AHEAD = 4;                 // keys that a team has in hand
constexpr int RECORD = D + 2;            // of a part: its largest score, its sum, its weighted values
constexpr float HIDDEN = -1e34f;         // below every real score

#ifdef BF16
__device__ __forceinline__ void unpack(const uint4& raw, float* x) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
    }
}

__device__ __forceinline__ T rounded(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (T)((bits >> 16) | 0x40u);
    return (T)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
#else
__device__ __forceinline__ void unpack(const uint4& raw, float* x) {
    x[0] = __uint_as_float(raw.x);
    x[1] = __uint_as_float(raw.y);
    x[2] = __uint_as_float(raw.z);
    x[3] = __uint_as_float(raw.w);
}

__device__ __forceinline__ T rounded(float x) { return x; }
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS)
attention_decode(const T* q, const T* k, const T* v, const int* start, const int* end, const float* sinks, T* out,
                 float* parts, int n_keys, int kv_stride, int kv_batch, float scale, int n_heads, int group, int n_parts,
                 int sunk) {
    __shared__ float values[WARPS * TEAMS][G][D];
    __shared__ float tops[WARPS * TEAMS][G];
    __shared__ float sums[WARPS * TEAMS][G];
    const int part = blockIdx.x % n_parts, head0 = blockIdx.x / n_parts * G, row = blockIdx.y;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, team = lane / LANES, column = lane % LANES * WIDE;
    const int from = min(max(start[row], 0), n_keys), to = min(max(end[row], from), n_keys);
    const int each = (to - from + n_parts - 1) / n_parts;
    const int first = min(from + part * each, to), last = min(first + each, to);

    float query[G][WIDE], sum[G], top[G], mean[G][WIDE];
#pragma unroll
    for (int g = 0; g < G; ++g) {
        const long long at = ((long long)row * n_heads + head0 + g) * D + column;
        unpack(*reinterpret_cast<const uint4*>(q + at), query[g]);
        top[g] = HIDDEN;
        sum[g] = 0.0f;
#pragma unroll
        for (int e = 0; e < WIDE; ++e) {
            query[g][e] *= scale;
            mean[g][e] = 0.0f;
        }
    }
    const long long base = (long long)row * kv_batch + (long long)(head0 / group) * D + column;
    for (int key0 = first + warp * TEAMS * AHEAD; key0 < last; key0 += WARPS * TEAMS * AHEAD) {
        uint4 keys[AHEAD], rows[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
            const int key = key0 + j * TEAMS + team;
            const long long at = base + (long long)min(key, last - 1) * kv_stride;
            keys[j] = *reinterpret_cast<const uint4*>(k + at);
            rows[j] = *reinterpret_cast<const uint4*>(v + at);
        }
        float score[G][AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
            float x[WIDE];
            unpack(keys[j], x);
#pragma unroll
            for (int g = 0; g < G; ++g) {
                float dot = 0.0f;
#pragma unroll
                for (int e = 0; e < WIDE; ++e) dot += query[g][e] * x[e];
#pragma unroll
                for (int step = LANES / 2; step > 0; step /= 2) dot += __shfl_xor_sync(0xFFFFFFFFu, dot, step);
                score[g][j] = key0 + j * TEAMS + team < last ? dot : HIDDEN;
            }
        }
#pragma unroll
        for (int g = 0; g < G; ++g) {
            float most = top[g];
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) most = fmaxf(most, score[g][j]);
            const float keep = expf(top[g] - most);
            top[g] = most;
            sum[g] *= keep;
#pragma unroll
            for (int e = 0; e < WIDE; ++e) mean[g][e] *= keep;
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                score[g][j] = key0 + j * TEAMS + team < last ? expf(score[g][j] - most) : 0.0f;
                sum[g] += score[g][j];
            }
        }
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
            float x[WIDE];
            unpack(rows[j], x);
#pragma unroll
            for (int g = 0; g < G; ++g) {
                // A hidden key is a copy of the last one, so its value is finite whenever that is.
#pragma unroll
                for (int e = 0; e < WIDE; ++e) mean[g][e] += score[g][j] * x[e];
            }
        }
    }
    const int slot = warp * TEAMS + team;
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
        for (int e = 0; e < WIDE; ++e) values[slot][g][column + e] = mean[g][e];
        if (column == 0) {
            tops[slot][g] = top[g];
            sums[slot][g] = sum[g];
        }
    }
    __syncthreads();
    for (int item = threadIdx.x; item < G * D; item += 32 * WARPS) {
        const int g = item / D, c = item % D, head = head0 + g;
        const bool alone = n_parts == 1;
        float most = alone && sunk ? sinks[head] : HIDDEN;
        for (int s = 0; s < WARPS * TEAMS; ++s) most = fmaxf(most, tops[s][g]);
        float total = alone && sunk ? expf(sinks[head] - most) : 0.0f, value = 0.0f;
        for (int s = 0; s < WARPS * TEAMS; ++s) {
            const float keep = expf(tops[s][g] - most);
            total += sums[s][g] * keep;
            value += values[s][g][c] * keep;
        }
        const long long at = (long long)row * n_heads + head;
        if (alone) {
            out[at * D + c] = rounded(from < to ? value / total : 0.0f);
            continue;
        }
        float* record = parts + (at * n_parts + part) * RECORD;
        record[2 + c] = value;
        if (c == 0) {
            record[0] = most;
            record[1] = total;
        }
    }
}

// One block of D threads per head of a row.
extern "C" __global__ void __launch_bounds__(D)
attention_decode_parts(const float* parts, const float* sinks, T* out, int n_heads, int n_parts, int sunk) {
    const int head = blockIdx.x, c = threadIdx.x;
    const long long at = (long long)blockIdx.y * n_heads + head;
    const float* records = parts + at * n_parts * RECORD;
    float most = sunk ? sinks[head] : HIDDEN;
    for (int part = 0; part < n_parts; ++part) most = fmaxf(most, records[part * RECORD]);
    float total = sunk ? expf(sinks[head] - most) : 0.0f, seen = 0.0f, value = 0.0f;
    for (int part = 0; part < n_parts; ++part) {
        const float* record = records + part * RECORD;
        const float keep = expf(record[0] - most);
        seen += record[1];
        total += record[1] * keep;
        value += record[2 + c] * keep;
    }
    out[at * D + c] = rounded(seen > 0.0f ? value / total : 0.0f);
}
