// Random numbers of a stream of math/random.h into memory, by the instruction set in use.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "math/random.h"

namespace pyseq {

// Words begin, begin + 1, ... of a stream.
void random_words(RandomStream stream, uint64_t begin, int64_t count, uint32_t* out);

// fp32 to bf16, element i rounded by the low half of word begin + i.
void round_stochastically(const float* values, RandomStream stream, uint64_t begin, int64_t count, bf16* out);

// What an instruction set does.
struct RandomKernels {
  void (*words)(RandomStream stream, uint64_t begin, int64_t count, uint32_t* out);
  void (*round)(const float* values, RandomStream stream, uint64_t begin, int64_t count, bf16* out);
};

namespace portable {
RandomKernels random_kernels();
}
namespace avx2 {
RandomKernels random_kernels();
}
namespace avx512 {
RandomKernels random_kernels();
}

}  // namespace pyseq
