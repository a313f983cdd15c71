// The sum of squares of many tensors, for the norm of gradients.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "math/grad_norm.h"

namespace pyseq {

// A tensor: a row of three int64 for whoever fills a table of them. dtype is a DType, or 3 for fp64.
struct NormRow {
  const void* data;
  int64_t numel;
  int64_t dtype;
};
static_assert(sizeof(NormRow) == 3 * sizeof(int64_t), "a row is three int64");

static constexpr int64_t norm_dtypes = 4;

// Every square is added in fp64, in blocks of each tensor whose sums are added in order: the same tensors give the same
// bits whatever the number of threads and wherever they lie.
double sum_of_squares(const NormRow* rows, int64_t count, int threads);

using BlockSum = double (*)(const void* data, int64_t begin, int64_t end);
struct BlockSums {
  BlockSum of[norm_dtypes];  // by dtype
};

namespace portable {
BlockSums block_sums();
}
#if defined(__x86_64__)
namespace avx2 {
BlockSums block_sums();
}
namespace avx512 {
BlockSums block_sums();
}
#endif

}  // namespace pyseq
