// Philox4x32-10 (Salmon et al. 2011): numbers by counter, so that backward draws what forward drew and nothing is kept.
#pragma once
#include "simd.h"

namespace rit {
namespace RIT_ISA {

// Words of `lanes` counters at once.
constexpr int philox_lanes = RIT_VECTOR_BYTES / 4;
typedef uint32_t Words __attribute__((vector_size(RIT_VECTOR_BYTES)));
typedef uint64_t WideWords __attribute__((vector_size(2 * RIT_VECTOR_BYTES)));

RIT_INLINE void philox_round(Words (&counter)[4], uint32_t key0, uint32_t key1) {
  const WideWords first = __builtin_convertvector(counter[0], WideWords) * 0xD2511F53u;
  const WideWords second = __builtin_convertvector(counter[2], WideWords) * 0xCD9E8D57u;
  const Words high0 = __builtin_convertvector(first >> 32, Words), low0 = __builtin_convertvector(first, Words);
  const Words high1 = __builtin_convertvector(second >> 32, Words), low1 = __builtin_convertvector(second, Words);
  counter[0] = high1 ^ counter[1] ^ key0;
  counter[1] = low1;
  counter[2] = high0 ^ counter[3] ^ key1;
  counter[3] = low0;
}

// n numbers in [0, 1), multiples of 2^-24. Element w * q + j, with q = ceil(n / 4), is word w of counter (j, stream, row).
template <class T> static void uniform(T* out, int n, uint64_t seed, uint64_t row, int stream) {
  const int quarter = (n + 3) / 4;
  for (int j = 0; j < quarter; j += philox_lanes) {
    Words counter[4] = {Words{} + static_cast<uint32_t>(j), Words{} + static_cast<uint32_t>(stream), Words{} + static_cast<uint32_t>(row),
                        Words{} + static_cast<uint32_t>(row >> 32)};
    for (int lane = 0; lane < philox_lanes; ++lane) counter[0][lane] += lane;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) philox_round(counter, key0, key1);
    for (int word = 0; word < 4; ++word)
      for (int lane = 0; lane < philox_lanes && j + lane < quarter && word * quarter + j + lane < n; ++lane)
        out[word * quarter + j + lane] = static_cast<T>(counter[word][lane] >> 8) * static_cast<T>(0x1p-24);
  }
}

}  // namespace RIT_ISA
}  // namespace rit
