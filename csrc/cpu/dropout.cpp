#include "cpu/dropout.h"

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

static DropoutKernel kernel_for(DType dtype) {
  return PYSEQ_OF_ISA(dropout_kernel(dtype));
}

void dropout(const void* x, const void* residual, void* out, DType dtype, int64_t count, const Dropout& rule,
             int threads) {
  const DropoutKernel kernel = kernel_for(dtype);
  const int64_t piece = 16384;  // whole tiles of the random stream
  const int64_t pieces = (count + piece - 1) / piece;
#pragma omp parallel for num_threads(team_for(useful_threads(threads, count, 1), threads)) schedule(static)
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t begin = i * piece;
    kernel(x, residual, out, begin, count - begin < piece ? count - begin : piece, rule);
  }
}

}  // namespace pyseq
