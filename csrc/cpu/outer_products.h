// C = A^T B, or C += A^T B, of bf16 matrices in fp32: the gradient of a weight, which is summed over chunks of rows.
//
// Only where has_bf16_products (cpu/isa.h). Each element of C is a sum in one order, whatever the number of threads.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace pyseq {

struct OuterProducts {
  int64_t rows, a_cols, b_cols;
  const bf16* a;  // [rows x a_cols]
  int64_t a_stride;
  const bf16* b;  // [rows x b_cols]
  int64_t b_stride;
  float* c;  // [a_cols x b_cols]
  int64_t c_stride;
  bool accumulate;  // C +=
};

// Throws std::runtime_error where it cannot.
void outer_products(const OuterProducts& problem, int threads);

// What one thread does: a part of the columns of A and of the rows of C, with the pairs of rows of B as pack_pairs wrote
// them. Parts begin at multiples of tile_rows.
struct OuterProductsKernel {
  int64_t tile_rows;
  int64_t packed_words;  // 32 bits each, on a 64-byte boundary: all of B
  void (*pack_pairs)(const OuterProducts& problem, int64_t first, int64_t last, uint32_t* packed);
  void (*multiply)(const OuterProducts& part, const uint32_t* packed);
};

namespace avx512bf16 {
OuterProductsKernel outer_products_kernel(const OuterProducts& problem);
}

}  // namespace pyseq
