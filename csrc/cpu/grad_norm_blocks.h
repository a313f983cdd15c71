// Sums of squares of blocks in vectors; included by a file for each instruction set.
//
// In fp64 from the first square on: the squares of fp32, bf16 and fp16 numbers are then exact and neither overflow nor
// vanish, and memory is the limit all the same.
#pragma once

#include "cpu/grad_norm.h"
#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

template <class T>
static double block_sum(const void* data, int64_t begin, int64_t end) {
  constexpr int unroll = 4;  // additions of one sum wait for each other
  const T* x = static_cast<const T*>(data);
  if (end - begin < Vec::width) {  // four sums for a few elements take most of the time
    SquareSum sum;
    sum.add(load(x + begin, static_cast<int>(end - begin), 0.0f));
    return sum.total();
  }
  SquareSum sums[unroll];
  int64_t i = begin;
  for (; i + unroll * Vec::width <= end; i += unroll * Vec::width) {
    for (int u = 0; u < unroll; ++u) {
      sums[u].add(load(x + i + u * Vec::width));
    }
  }
  for (; i + Vec::width <= end; i += Vec::width) {
    sums[0].add(load(x + i));
  }
  if (i < end) {
    sums[1].add(load(x + i, static_cast<int>(end - i), 0.0f));
  }
  return (sums[0].total() + sums[1].total()) + (sums[2].total() + sums[3].total());
}

static double double_block_sum(const void* data, int64_t begin, int64_t end) {
  const double* x = static_cast<const double*>(data);
  double sums[4] = {0.0, 0.0, 0.0, 0.0};
  for (int64_t i = begin; i < end; ++i) {
    sums[i % 4] += x[i] * x[i];
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

BlockSums block_sums() { return {{block_sum<float>, block_sum<bf16>, block_sum<f16>, double_block_sum}}; }

}  // namespace PYSEQ_ISA
}  // namespace pyseq
