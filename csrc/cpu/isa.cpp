#include "cpu/isa.h"

#include <atomic>

namespace pyseq {

Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {  // every such processor has f16c too
    return Isa::avx2;
  }
#endif
  return Isa::portable;
}

static std::atomic<Isa>& chosen_isa() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

Isa current_isa() { return chosen_isa().load(std::memory_order_relaxed); }

bool has_bf16_products() {
#if defined(PYSEQ_HAVE_AVX512BF16)
  return current_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const char* vendor() {
#if defined(__x86_64__)
  if (__builtin_cpu_is("amd")) {
    return "amd";
  }
  if (__builtin_cpu_is("intel")) {
    return "intel";
  }
#endif
  return "other";
}

bool set_isa(Isa isa) {
  if (isa > best_isa()) {
    return false;
  }
  chosen_isa().store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace pyseq
