#include "cpu/random.h"

#include "cpu/isa.h"

namespace pyseq {

static RandomKernels kernels() {
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::avx512:
      return avx512::random_kernels();
    case Isa::avx2:
      return avx2::random_kernels();
    case Isa::portable:
      break;
  }
#endif
  return portable::random_kernels();
}

void random_words(RandomStream stream, uint64_t begin, int64_t count, uint32_t* out) {
  kernels().words(stream, begin, count, out);
}

void round_stochastically(const float* values, RandomStream stream, uint64_t begin, int64_t count, bf16* out) {
  kernels().round(values, stream, begin, count, out);
}

}  // namespace pyseq
