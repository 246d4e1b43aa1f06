// Peaks of bf16 tensors, and rounding them to FP8 by rows and by columns.
//
// Peaks are maxima, which no order changes, so that nothing here depends on the order of the blocks. A tensor is looked at
// eight numbers at a time, and its rows and columns come in groups of 16.

typedef unsigned char u8;
typedef unsigned int u32;

constexpr int THREADS = 256;
// Rows and columns of a tile.
constexpr int TILE = 128;

// The larger of the halves of both words.
__device__ u32 larger(u32 a, u32 b) { return __vmaxu2(a, b); }

// The sizes of two bf16 numbers; 0 for those that are not finite.
__device__ u32 sizes(u32 pair) {
    u32 size = pair & 0x7fff7fffu;
    return size & __vcmpltu2(size, 0x7f807f80u);
}

// The same pair with NaN in place of infinities.
__device__ u32 without_infinities(u32 pair) { return pair | (__vcmpgeu2(pair & 0x7fff7fffu, 0x7f807f80u) & 0x7fff7fffu); }

// The largest size that the threads of the block have seen, in each of them.
__device__ float block_peak(float peak) {
    __shared__ float peaks[THREADS / 32];
    for (int step = 16; step > 0; step /= 2) {
        peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, step));
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        peaks[threadIdx.x / 32] = peak;
    }
    __syncthreads();
    for (int warp = 0; warp < THREADS / 32; warp++) {
        peak = fmaxf(peak, peaks[warp]);
    }
    return peak;
}

__device__ float size_of(u32 pair) {
    return fmaxf(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// The largest of `n` numbers, each thread of the block looking at some.
__device__ float largest(const float* values, int n) {
    float peak = 0.0f;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        peak = fmaxf(peak, values[i]);
    }
    return block_peak(peak);
}

// The largest power of two that keeps `peak` in the format whose largest number is 1.75 * 2^top.
__device__ float scale_of(float peak, int top) {
    if (peak == 0.0f) {
        return 1.0f;
    }
    u32 bits = __float_as_uint(peak);
    int exponent = int(bits >> 23) - 127;
    int n = ((bits & 0x007fffffu) <= 0x00600000u ? top : top - 1) - exponent;
    n = min(max(n, -126), 126);
    return __uint_as_float(u32(n + 127) << 23);
}

// Peaks of parts of x, one per block; none, where the history knows one.
extern "C" __global__ void __launch_bounds__(THREADS)
fp8_peak(const uint4* x, int n, const float* history, int n_history, float* peaks) {
    if (largest(history, n_history) > 0.0f) {
        return;
    }
    u32 peak = 0;
    int stride = gridDim.x * THREADS;
    int i = blockIdx.x * THREADS + threadIdx.x;
    for (; i + 3 * stride < n; i += 4 * stride) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            v[j] = x[i + j * stride];
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 a = larger(sizes(v[j].x), sizes(v[j].y)), b = larger(sizes(v[j].z), sizes(v[j].w));
            peak = larger(peak, larger(a, b));
        }
    }
    for (; i < n; i += stride) {
        uint4 v = x[i];
        peak = larger(peak, larger(larger(sizes(v.x), sizes(v.y)), larger(sizes(v.z), sizes(v.w))));
    }
    float whole = block_peak(size_of(peak));
    if (threadIdx.x == 0) {
        peaks[blockIdx.x] = whole;
    }
}

// Two FP8 numbers, the first in the low byte.
template <bool E5M2>
__device__ u32 rounded(u32 pair, float scale) {
    pair = without_infinities(pair);
    float first = __uint_as_float(pair << 16) * scale, second = __uint_as_float(pair & 0xffff0000u) * scale;
    unsigned short out;
    if (E5M2) {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(out) : "f"(second), "f"(first));
    } else {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(second), "f"(first));
    }
    return out;
}

// Where word `word` of row `row` of a tile is kept: so that neither rows nor columns meet in a bank.
__device__ int place(int row, int word) { return row * (TILE / 4) + (word ^ ((row / 16 % 8) * 4)); }

template <bool E5M2>
__device__ u32 round_tiles(const uint4* x, int rows, int columns, float scale, uint2* by_rows, u8* by_columns,
                           u32 (&tiles)[2][TILE * TILE / 4]) {
    constexpr int PASSES = TILE * TILE / 8 / THREADS;
    int across = (columns + TILE - 1) / TILE, count = across * ((rows + TILE - 1) / TILE);
    int row_in_pass = threadIdx.x / (TILE / 8), eight = threadIdx.x % (TILE / 8);
    u32 peak = 0;
    int turn = 0;
    for (int tile = blockIdx.x; tile < count; tile += gridDim.x, turn ^= 1) {
        int top = tile / across * TILE, left = tile % across * TILE;
        bool inside = left + eight * 8 < columns;
        uint4 v[PASSES];
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            int row = top + pass * (THREADS * 8 / TILE) + row_in_pass;
            size_t at = (size_t(row) * columns + left) / 8 + eight;
            v[pass] = inside && row < rows ? x[at] : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            int in_tile = pass * (THREADS * 8 / TILE) + row_in_pass, row = top + in_tile;
            u32 a = larger(sizes(v[pass].x), sizes(v[pass].y)), b = larger(sizes(v[pass].z), sizes(v[pass].w));
            peak = larger(peak, larger(a, b));
            uint2 q;
            q.x = rounded<E5M2>(v[pass].x, scale) | rounded<E5M2>(v[pass].y, scale) << 16;
            q.y = rounded<E5M2>(v[pass].z, scale) | rounded<E5M2>(v[pass].w, scale) << 16;
            if (by_rows && inside && row < rows) {
                by_rows[(size_t(row) * columns + left) / 8 + eight] = q;
            }
            if (by_columns) {
                *reinterpret_cast<uint2*>(&tiles[turn][place(in_tile, eight * 2)]) = q;
            }
        }
        if (!by_columns) {
            continue;
        }
        // One barrier is enough: the other tile's memory is written next, and this one's only after the next barrier.
        __syncthreads();
        int group = threadIdx.x % (TILE / 16), four = threadIdx.x / (TILE / 16);
        u32 out[4][4];
#pragma unroll
        for (int part = 0; part < 4; part++) {
            u32 w[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                w[k] = tiles[turn][place(group * 16 + part * 4 + k, four)];
            }
            u32 low_ab = __byte_perm(w[0], w[1], 0x5140), low_cd = __byte_perm(w[2], w[3], 0x5140);
            u32 high_ab = __byte_perm(w[0], w[1], 0x7362), high_cd = __byte_perm(w[2], w[3], 0x7362);
            out[0][part] = __byte_perm(low_ab, low_cd, 0x5410);
            out[1][part] = __byte_perm(low_ab, low_cd, 0x7632);
            out[2][part] = __byte_perm(high_ab, high_cd, 0x5410);
            out[3][part] = __byte_perm(high_ab, high_cd, 0x7632);
        }
        int row = top + group * 16, column = left + four * 4;
        if (row < rows && column < columns) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint4 value = make_uint4(out[j][0], out[j][1], out[j][2], out[j][3]);
                *reinterpret_cast<uint4*>(by_columns + size_t(column + j) * rows + row) = value;
            }
        }
    }
    return peak;
}

// x[rows, columns] in FP8, as it is and transposed, each where it is wanted; 1/scale; and the peaks of the blocks' parts.
//
// The scale is from the history, or from `peaks`, where the history knows nothing. The peaks must be those of x: where they are of
// another tensor, everything becomes NaN.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
fp8_quantise(const uint4* x, int rows, int columns, const float* history, int n_history, const float* peaks, int n_peaks,
             const uint4* of, int e5m2, int want_rows, int want_columns, uint2* by_rows, u8* by_columns, float* inverse, float* seen) {
    __shared__ u32 tiles[2][TILE * TILE / 4];
    float known = largest(history, n_history);
    if (known == 0.0f) {
        known = largest(peaks, n_peaks);
    }
    float scale = of == x ? scale_of(known, e5m2 ? 15 : 8) : __uint_as_float(0x7fc00000u);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        *inverse = 1.0f / scale;
    }
    by_rows = want_rows ? by_rows : nullptr;
    by_columns = want_columns ? by_columns : nullptr;
    u32 peak = e5m2 ? round_tiles<true>(x, rows, columns, scale, by_rows, by_columns, tiles)
                    : round_tiles<false>(x, rows, columns, scale, by_rows, by_columns, tiles);
    float whole = block_peak(size_of(peak));
    if (threadIdx.x == 0) {
        seen[blockIdx.x] = whole;
    }
}

// The next history [3, n]: new peaks in front, the others one place on.
extern "C" __global__ void __launch_bounds__(THREADS)
fp8_history(const float* history, int n, const float* x, int n_x, const float* w, int n_w, const float* dy, int n_dy,
            float* next) {
    const float* seen[3] = {x, w, dy};
    int counts[3] = {n_x, n_w, n_dy};
    for (int row = 0; row < 3; row++) {
        float peak = largest(seen[row], counts[row]);
        for (int i = threadIdx.x; i < n; i += THREADS) {
            next[row * n + i] = i == 0 ? peak : history[row * n + i - 1];
        }
    }
}
