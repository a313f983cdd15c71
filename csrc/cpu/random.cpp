#include "cpu/random.h"

#include "cpu/isa.h"

namespace pyseq {

static RandomKernels kernels() {
  return PYSEQ_OF_ISA(random_kernels());
}

void random_words(RandomStream stream, uint64_t begin, int64_t count, uint32_t* out) {
  kernels().words(stream, begin, count, out);
}

void round_stochastically(const float* values, RandomStream stream, uint64_t begin, int64_t count, bf16* out) {
  kernels().round(values, stream, begin, count, out);
}

}  // namespace pyseq
