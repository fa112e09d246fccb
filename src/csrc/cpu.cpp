#include "cpu.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace rit {

namespace baseline {
const Backend* backend();
}

#if defined(__x86_64__)

namespace avx2 {
const Backend* backend();
}
namespace avx512 {
const Backend* backend();
}
namespace avx512bf16 {
const Backend* backend();
}

namespace {

// These two have no name in __builtin_cpu_supports of every compiler. The builtin also asks whether the system saves
// the registers; both need no others than AVX and AVX-512, for which it has answered.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx512bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
}

std::vector<const Backend*> find_backends() {
  std::vector<const Backend*> found{baseline::backend()};
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
        has_f16c()))
    return found;
  found.push_back(avx2::backend());
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")))
    return found;
  found.push_back(avx512::backend());
  if (has_avx512bf16()) found.push_back(avx512bf16::backend());
  return found;
}

}  // namespace

#else

namespace {
std::vector<const Backend*> find_backends() { return {baseline::backend()}; }
}  // namespace

#endif

const std::vector<const Backend*>& backends() {
  static const std::vector<const Backend*> found = find_backends();
  return found;
}

const Backend& choose_backend() {
  static const Backend& chosen = []() -> const Backend& {
    const char* forced = std::getenv("RITORNELLO_ISA");
    if (!forced || !*forced) return *backends().back();
    std::string names;
    for (const Backend* backend : backends()) {
      if (backend->name == std::string(forced)) return *backend;
      names += (names.empty() ? "" : ", ") + std::string(backend->name);
    }
    throw std::invalid_argument("RITORNELLO_ISA is '" + std::string(forced) + "', but this processor can run " + names +
                                ": set it to one of these, or unset it");
  }();
  return chosen;
}

}  // namespace rit
