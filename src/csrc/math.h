// Elementary functions of vectors. float: at most 3 ulp, relative near zero too; double: lane by lane from the C library.
// In the polynomials: n the power of two, r the reduced argument, s = 2^n.
#pragma once
#include "simd.h"

namespace rit {
namespace RIT_ISA {

template <class T, class Function> RIT_INLINE Vector<T> map_lanes(Vector<T> x, Function function) {
    RIT_UNROLL
    for (int lane = 0; lane < Simd<T>::lanes; ++lane) x[lane] = function(x[lane]);
    return x;
}

RIT_INLINE Simd<float>::Bits bits(Floats x) { return (Simd<float>::Bits)x; }
RIT_INLINE Floats from_bits(Simd<float>::Bits x) { return (Floats)x; }
RIT_INLINE Floats absolute(Floats x) { return from_bits(bits(x) & 0x7fffffffu); }
RIT_INLINE Floats copy_sign(Floats size, Floats sign) { return from_bits((bits(size) & 0x7fffffffu) | (bits(sign) & 0x80000000u)); }

// Pairs of terms, then Horner's rule in x^2: half the latency of Horner's rule in x.
template <int COUNT> RIT_INLINE Floats polynomial(Floats x, const float (&coefficients)[COUNT]) {
    constexpr int last = (COUNT - 1) / 2 * 2;
    Floats value = last + 1 < COUNT ? coefficients[COUNT - 1] * x + coefficients[last] : broadcast(coefficients[last]);
    RIT_UNROLL
    for (int i = last - 2; i >= 0; i -= 2) value = value * (x * x) + (coefficients[i + 1] * x + coefficients[i]);
    return value;
}

struct Reduced {
    Floats n, r;
    Simd<float>::Bits sum;  // its low bits are those of n + offset
};

// x = n ln 2 + r with n a whole number.
RIT_INLINE Reduced reduce(Floats x, int offset = 0) {
    const float round = 12582912.f + offset;  // 1.5 * 2^23: adding it leaves whole numbers
    const Floats sum = x * 1.44269504f + round;
    const Floats n = sum - round;
    Floats r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    return {n, r, bits(sum)};
}

// e^r for |r| <= ln 2 / 2.
RIT_INLINE Floats exp_reduced(Floats r) { return polynomial(r, {1.f, 1.f, 0.49999994f, 0.166665211f, 0.0416682735f, 0.00836868584f, 0.00138201378f}); }

// 2^n of the n in the low bits, between the smallest and the largest normal number.
RIT_INLINE Floats power_of_two(Simd<float>::Bits n) { return from_bits((n << 23) + 0x3f800000u); }

RIT_INLINE Floats exp(Floats x) {
    const Reduced reduced = reduce(clamp(x, -104.f, 89.f));
    const Floats value = exp_reduced(reduced.r);
#if defined(__AVX512F__) && RIT_VECTOR_BYTES == 64
    return _mm512_maskz_scalef_ps(-1, value, reduced.n);
#else
    const auto n = (Simd<float>::Mask)(reduced.sum - 0x4b400000u);  // in two steps: 2^n alone may overflow or be subnormal
    const auto half = n >> 1;
    return value * power_of_two((Simd<float>::Bits)half) * power_of_two((Simd<float>::Bits)(n - half));
#endif
}

RIT_INLINE Floats expm1(Floats x) {
    const Reduced reduced = reduce(clamp(x, -40.f, 89.f));
    const Floats r = reduced.r, half = power_of_two(reduced.sum - 1);  // 2^128 would overflow
    const Floats small = r + r * r * polynomial(r, {0.49999997f, 0.166665465f, 0.0416674353f, 0.00836627185f, 0.00138706958f});
    return copy_sign((half * small + (half - 0.5f)) * 2.f, x);
}

// e^x / (1 + e^x), both times 2^24: their quotient may be subnormal, they are not.
RIT_INLINE Floats sigmoid(Floats x) {
    const Reduced reduced = reduce(clamp(x, -104.f, 40.f), 24);
    const Floats e = exp_reduced(reduced.r) * power_of_two(reduced.sum);
    return e / (e + 16777216.f);
}

// e / (e + 2) with e = e^2x - 1.
RIT_INLINE Floats tanh(Floats x) {
    constexpr float round = 12582912.f;
    const Floats inside = clamp(x, -10.f, 10.f);
    const Floats sum = inside * 2.88539008f + round;
    const Floats r = inside - (sum - round) * 0.34657359f;  // of ln 2 / 2; the digits it lacks do not show in a tanh
    const Floats small = (r + r) + r * r * polynomial(r, {1.99999988f, 1.33332372f, 0.666678965f, 0.267720699f, 0.0887724534f});
    const Floats s = power_of_two(bits(sum));
    const Floats e = s * small + (s - 1.f);
    return from_bits(bits(e / (e + 2.f)) | (bits(x) & 0x80000000u));  // -0 stays
}

RIT_INLINE Floats log(Floats x) {
    const auto tiny = x < 1.17549435e-38f;
    const Floats scaled = select(tiny, x * 8388608.f, x);
    const auto exponent = (Simd<float>::Mask)(bits(scaled) - 0x3f3504f3u) >> 23;  // mantissa from sqrt(1/2) to sqrt(2)
    const Floats f = from_bits(bits(scaled) - ((Simd<float>::Bits)exponent << 23)) - 1.f;
    const Floats n = __builtin_convertvector(exponent, Floats) - select(tiny, broadcast(23.f), Floats{});
    Floats tail = f * f * f * polynomial(f, {0.333333313f, -0.250008196f, 0.200012401f, -0.166234076f, 0.142016277f, -0.131596833f, 0.127618611f, -0.0763575062f});
    tail = tail - n * 2.12194440e-4f;
    tail = tail - 0.5f * f * f;
    Floats value = f + tail + n * 0.693359375f;
    value = select(x == __builtin_inff(), x, value);
    value = select(x == 0.f, broadcast(-__builtin_inff()), value);
    return select((x < 0.f) | (x != x), broadcast(__builtin_nanf("")), value);
}

RIT_INLINE Floats log1p(Floats x) {
    const Floats u = 1.f + x;
    const Floats correction = (x - (u - 1.f)) / u;  // what rounding u lost
    const Floats value = log(u) + select((u > 0.f) & (u < __builtin_inff()), correction, Floats{});
    return select(x == 0.f, x, value);
}

RIT_INLINE Floats softplus(Floats x) { return max(x, Floats{}) + log1p(exp(-absolute(x))); }

RIT_INLINE Floats erf(Floats x) {
    const Floats size = clamp(absolute(x), 0.f, 4.f);
    const Floats small = x + x * polynomial(x * x, {0.128379166f, -0.37612626f, 0.112835787f, -0.0268533472f, 0.0051871622f, -0.00079978531f, 7.80690389e-05f});
    const Floats large = 1.f - exp(size * polynomial(size, {-1.1286943f, -0.634969711f, -0.10653054f, 0.0240097605f, -0.00375731685f, 0.00035054906f, -1.3957796e-05f}));
    return select(size < 1.f, small, copy_sign(large, x));
}

RIT_INLINE Floats sqrt(Floats x) { return map_lanes<float>(x, [](float v) { return __builtin_sqrtf(v); }); }
RIT_INLINE Floats sin(Floats x) { return map_lanes<float>(x, [](float v) { return __builtin_sinf(v); }); }
RIT_INLINE Floats cos(Floats x) { return map_lanes<float>(x, [](float v) { return __builtin_cosf(v); }); }
RIT_INLINE Floats pow(Floats x, float p) { return map_lanes<float>(x, [p](float v) { return __builtin_powf(v, p); }); }

RIT_INLINE Doubles exp(Doubles x) { return map_lanes<double>(x, [](double v) { return __builtin_exp(v); }); }
RIT_INLINE Doubles expm1(Doubles x) { return map_lanes<double>(x, [](double v) { return __builtin_expm1(v); }); }
RIT_INLINE Doubles log(Doubles x) { return map_lanes<double>(x, [](double v) { return __builtin_log(v); }); }
RIT_INLINE Doubles log1p(Doubles x) { return map_lanes<double>(x, [](double v) { return __builtin_log1p(v); }); }
RIT_INLINE Doubles tanh(Doubles x) { return map_lanes<double>(x, [](double v) { return __builtin_tanh(v); }); }
RIT_INLINE Doubles erf(Doubles x) { return map_lanes<double>(x, [](double v) { return __builtin_erf(v); }); }
RIT_INLINE Doubles sqrt(Doubles x) { return map_lanes<double>(x, [](double v) { return __builtin_sqrt(v); }); }
RIT_INLINE Doubles sin(Doubles x) { return map_lanes<double>(x, [](double v) { return __builtin_sin(v); }); }
RIT_INLINE Doubles cos(Doubles x) { return map_lanes<double>(x, [](double v) { return __builtin_cos(v); }); }
RIT_INLINE Doubles pow(Doubles x, double p) { return map_lanes<double>(x, [p](double v) { return __builtin_pow(v, p); }); }

RIT_INLINE Doubles sigmoid(Doubles x) {
    const Doubles e = exp(select(x > 40., broadcast(40.), x));
    return e / (1. + e);
}

RIT_INLINE Doubles softplus(Doubles x) { return max(x, Doubles{}) + log1p(exp(select(x < 0., x, -x))); }

}  // namespace RIT_ISA
}  // namespace rit
