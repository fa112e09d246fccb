// Vectors of one instruction set: T lane type, n a count of lanes. Each translation unit defines RIT_ISA (a namespace) and RIT_VECTOR_BYTES.
#pragma once
#if !defined(RIT_ISA) || !defined(RIT_VECTOR_BYTES)
#error "define RIT_ISA and RIT_VECTOR_BYTES (16, 32 or 64) before including simd.h"
#endif

#include <cstddef>
#include <cstdint>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define RIT_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define RIT_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RIT_UNROLL _Pragma("GCC unroll 32")
#endif

namespace rit {
namespace RIT_ISA {

using std::ptrdiff_t;
using std::size_t;

template <class T> struct Simd;

template <> struct Simd<float> {
    typedef float Vector __attribute__((vector_size(RIT_VECTOR_BYTES)));
    typedef int32_t Mask __attribute__((vector_size(RIT_VECTOR_BYTES)));  // what a comparison gives: -1 or 0
    typedef uint32_t Bits __attribute__((vector_size(RIT_VECTOR_BYTES)));
    static constexpr int lanes = RIT_VECTOR_BYTES / 4;
};

template <> struct Simd<double> {
    typedef double Vector __attribute__((vector_size(RIT_VECTOR_BYTES)));
    typedef int64_t Mask __attribute__((vector_size(RIT_VECTOR_BYTES)));
    typedef uint64_t Bits __attribute__((vector_size(RIT_VECTOR_BYTES)));
    static constexpr int lanes = RIT_VECTOR_BYTES / 8;
};

template <class T> using Vector = typename Simd<T>::Vector;
using Floats = Simd<float>::Vector;
using Doubles = Simd<double>::Vector;

template <class T> RIT_INLINE Vector<T> load(const T* from) {
    Vector<T> value;
    __builtin_memcpy(&value, from, sizeof value);  // the way to say "unaligned"
    return value;
}

template <class T> RIT_INLINE void store(T* to, Vector<T> value) { __builtin_memcpy(to, &value, sizeof value); }

template <class T> RIT_INLINE Vector<T> broadcast(T value) { return value - Vector<T>{}; }  // minus: -0 stays

// The first n < lanes elements, zeros after them; nothing beyond them is read.
template <class T> RIT_INLINE Vector<T> load_partial(const T* from, int n) {
#if defined(__AVX512F__) && RIT_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_ps((1u << n) - 1, from);
    else return _mm512_maskz_loadu_pd((1u << n) - 1, from);
#else
    Vector<T> value{};
    for (int lane = 0; lane < n; ++lane) value[lane] = from[lane];
    return value;
#endif
}

// Writes the first n < lanes elements and nothing beyond them.
template <class T> RIT_INLINE void store_partial(T* to, Vector<T> value, int n) {
#if defined(__AVX512F__) && RIT_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(to, (1u << n) - 1, value);
    else _mm512_mask_storeu_pd(to, (1u << n) - 1, value);
#else
    for (int lane = 0; lane < n; ++lane) to[lane] = value[lane];
#endif
}

// As many of `columns` as a vector holds; none for a negative number.
template <class T> RIT_INLINE Vector<T> load_columns(const T* from, int columns) {
    if (columns >= Simd<T>::lanes) return load(from);
    return columns > 0 ? load_partial(from, columns) : Vector<T>{};
}

template <class T> RIT_INLINE void store_columns(T* to, Vector<T> value, int columns) {
    if (columns >= Simd<T>::lanes) store(to, value);
    else if (columns > 0) store_partial(to, value, columns);
}

RIT_INLINE Floats select(Simd<float>::Mask mask, Floats yes, Floats no) { return mask ? yes : no; }
RIT_INLINE Doubles select(Simd<double>::Mask mask, Doubles yes, Doubles no) { return mask ? yes : no; }

// a < b ? a : b and a > b ? a : b, which compilers do not see to be one instruction: with a NaN on either side the result is b.
RIT_INLINE Floats lesser_or_second(Floats a, Floats b) {
#if defined(__AVX512F__) && RIT_VECTOR_BYTES == 64
    return _mm512_maskz_min_ps(-1, a, b);
#elif defined(__AVX__) && RIT_VECTOR_BYTES == 32
    return _mm256_min_ps(a, b);
#elif defined(__SSE__) && RIT_VECTOR_BYTES == 16
    return _mm_min_ps(a, b);
#else
    return select(a < b, a, b);
#endif
}

RIT_INLINE Floats greater_or_second(Floats a, Floats b) {
#if defined(__AVX512F__) && RIT_VECTOR_BYTES == 64
    return _mm512_maskz_max_ps(-1, a, b);
#elif defined(__AVX__) && RIT_VECTOR_BYTES == 32
    return _mm256_max_ps(a, b);
#elif defined(__SSE__) && RIT_VECTOR_BYTES == 16
    return _mm_max_ps(a, b);
#else
    return select(a > b, a, b);
#endif
}

RIT_INLINE Doubles lesser_or_second(Doubles a, Doubles b) { return select(a < b, a, b); }
RIT_INLINE Doubles greater_or_second(Doubles a, Doubles b) { return select(a > b, a, b); }

// As torch.minimum, torch.maximum and torch.clamp: a NaN stays.
RIT_INLINE Floats min(Floats a, Floats b) { return select(a != a, a, lesser_or_second(a, b)); }
RIT_INLINE Floats max(Floats a, Floats b) { return select(a != a, a, greater_or_second(a, b)); }
RIT_INLINE Doubles min(Doubles a, Doubles b) { return select(a != a, a, lesser_or_second(a, b)); }
RIT_INLINE Doubles max(Doubles a, Doubles b) { return select(a != a, a, greater_or_second(a, b)); }
RIT_INLINE Floats clamp(Floats x, float low, float high) { return lesser_or_second(broadcast(high), greater_or_second(broadcast(low), x)); }
RIT_INLINE Doubles clamp(Doubles x, double low, double high) { return lesser_or_second(broadcast(high), greater_or_second(broadcast(low), x)); }

// Halves are folded onto each other, so that the order is the same for every call.
template <class T> RIT_INLINE T sum_lanes(Vector<T> value) {
    RIT_UNROLL
    for (int half = Simd<T>::lanes / 2; half > 0; half /= 2) {
        RIT_UNROLL
        for (int lane = 0; lane < half; ++lane) value[lane] += value[lane + half];
    }
    return value[0];
}

}  // namespace RIT_ISA
}  // namespace rit
