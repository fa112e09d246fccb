// Products in bfloat16: both sides are rounded when they are packed, sums are float32. A pair is two numbers of successive depths.
// Without AVX512_BF16 the order of the sums is the same, but subnormal numbers count, which that instruction takes for zero.
#pragma once
#include "gemm.h"

namespace rit {
namespace RIT_ISA {

using Pair = uint32_t;  // two bfloat16 numbers: depth 2k in the low half, 2k + 1 in the high half

template <> struct Simd<Pair> {
    using Vector = Simd<float>::Bits;
    static constexpr int lanes = Simd<float>::lanes;
};

using Pairs = Vector<Pair>;
typedef uint16_t Halves __attribute__((vector_size(RIT_VECTOR_BYTES / 2)));

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && RIT_VECTOR_BYTES == 64
RIT_INLINE Halves rounded(Floats x) { return (Halves)_mm512_cvtneps_pbh(x); }

RIT_INLINE Pairs pairs(Floats low, Floats high) {
    typedef uint16_t Order __attribute__((vector_size(64)));
    constexpr Order order{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (Pairs)_mm512_permutexvar_epi16((__m512i)order, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

RIT_INLINE Floats multiply_add_pairs(Floats sum, Pairs a, Pairs b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
#else
// In the upper halves.
RIT_INLINE Pairs rounded_bits(Floats x) {
    const Pairs bits = (Pairs)x;
    return (Pairs)select(x != x, (Floats)(bits | 0x400000u), (Floats)(bits + (0x7fffu + (bits >> 16 & 1u))));
}

RIT_INLINE Halves rounded(Floats x) { return __builtin_convertvector(rounded_bits(x) >> 16, Halves); }
RIT_INLINE Pairs pairs(Floats low, Floats high) { return rounded_bits(low) >> 16 | (rounded_bits(high) & 0xffff0000u); }

RIT_INLINE Floats multiply_add_pairs(Floats sum, Pairs a, Pairs b) {
    sum += (Floats)(a & 0xffff0000u) * (Floats)(b & 0xffff0000u);
    sum += (Floats)(a << 16) * (Floats)(b << 16);
    return sum;
}
#endif

template <> struct Unit<Pair> {
    using Number = float;
    static constexpr int numbers = 2;
    RIT_INLINE Floats multiply_add(Floats sum, Pairs a, Pairs b) { return multiply_add_pairs(sum, a, b); }
    static inline const Pair* row(const float* const* rows, int row_count, int first, int columns, Pair* scratch) {
        constexpr int L = Simd<float>::lanes;
        const float *low = rows[0] + first, *high = row_count > 1 ? rows[1] + first : nullptr;
        for (int j = 0; j < columns; j += L)
            store(scratch + j, pairs(load_columns(low + j, columns - j), high ? load_columns(high + j, columns - j) : Floats{}));
        return scratch;
    }
    static constexpr size_t scratch(int columns) { return columns + Simd<float>::lanes; }  // whole vectors are written
};

// Units of Pair.
static inline size_t packed_pairs(int n, int k) { return packed_size<Pair>(n, ceil_divide(k, 2)); }

// One panel of pack, [k][W], as [ceil(k / 2)][W] pairs; an odd k's last upper halves are zero.
static inline void to_pairs(const float* panel, int k, Pair* out) {
    constexpr int W = panel_width<float>(), L = Simd<float>::lanes;
    for (int depth = 0; depth < k; depth += 2, panel += 2 * W, out += W)
        for (int j = 0; j < W; j += L) store(out + j, pairs(load(panel + j), depth + 1 < k ? load(panel + W + j) : Floats{}));
}

// From row to row of the rounded left side: one more vector of halves may be written.
RIT_INLINE ptrdiff_t rounded_stride(int k) { return ceil_divide(k, 2) + Simd<float>::lanes / 2; }

// Units of Pair.
static inline size_t multiply_pairs_workspace(int rows, int k) { return static_cast<size_t>(rows) * rounded_stride(k); }

// The segments' parts of one row, one after the other; out[k], after the last, is zero.
static inline void round_row(const Segment<float>* segments, int count, int row, Pair* out) {
    constexpr int L = Simd<float>::lanes;
    char* to = reinterpret_cast<char*>(out);
    for (int s = 0; s < count; ++s) {
        const float* from = segments[s].data + row * segments[s].stride;
        const int length = segments[s].length;
        for (int k = 0; k < length; k += L) {
            const Halves halves = rounded(load_columns(from + k, length - k));
            __builtin_memcpy(to + 2 * k, &halves, sizeof halves);
        }
        to += 2 * length;
    }
    __builtin_memset(to, 0, 2);
}

// As multiply, with panels of pairs.
static inline void multiply_pairs(const Segment<float>* segments, int count, int rows, const Pair* panels, int n, const float* start, ptrdiff_t start_stride,
                                  float* c, ptrdiff_t c_stride, Pair* workspace) {
    int depth = 0;
    for (int s = 0; s < count; ++s) depth += segments[s].length;
    const ptrdiff_t stride = rounded_stride(depth);
    for (int row = 0; row < rows; ++row) round_row(segments, count, row, workspace + row * stride);
    const Segment<Pair> left{workspace, stride, ceil_divide(depth, 2)};
    multiply(&left, 1, rows, panels, n, start, start_stride, c, c_stride);
}

}  // namespace RIT_ISA
}  // namespace rit
