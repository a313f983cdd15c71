// Layer normalisation (Ba et al. 2016) of rows, with dropout and a residual before it.
//
// For each row: z = dropout(x) + residual, rounded to its dtype, and y = (z - mean(z)) / sqrt(var(z) + eps) * weight + bias.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "math/dropout.h"

namespace pyseq {

struct LayerNormRows {
  DType dtype;  // of all rows; the rest is fp32
  int64_t rows;
  int64_t cols;         // all rows lie without gaps
  const float* weight;  // [cols], or null for 1
  const float* bias;    // [cols], or null for 0
  Dropout dropout;      // element c of row r is number r * cols + c; limit -1: none
};

struct LayerNormForward {
  const void* x;
  const void* residual;  // or null
  double eps;
  void* y;
  void* z;      // or null where it is x
  float* mean;  // [rows]
  float* rstd;  // [rows]: 1 / sqrt(var + eps)
};

struct LayerNormBackward {
  const void* grad_y;
  const void* grad_z;  // or null: what comes back to z by other ways
  const void* z;
  const float* mean;
  const float* rstd;
  void* grad_residual;  // the gradient of z; or null where x has the same one
  void* grad_x;         // or null where nobody asks
};

// `threads` changes no bit of the results.
void layer_norm_forward(const LayerNormRows& shape, const LayerNormForward& data, int threads);

// Rows are taken in chunks, each with its own sums for the gradients of weight and bias.
struct LayerNormChunks {
  int64_t rows;   // of a chunk
  int64_t count;  // at most 256
};
LayerNormChunks layer_norm_chunks(int64_t rows);

// partial: [count of chunks, 2, cols], overwritten. grad_weight and grad_bias: [cols].
void layer_norm_backward(const LayerNormRows& shape, const LayerNormBackward& data, float* partial, float* grad_weight,
                         float* grad_bias, int threads);

// What an instruction set does with rows [begin, end); `work` has room for a row of fp32, `sums` is [2, cols].
struct LayerNormKernels {
  void (*forward)(const LayerNormRows& shape, const LayerNormForward& data, int64_t begin, int64_t end, float* work);
  void (*backward)(const LayerNormRows& shape, const LayerNormBackward& data, int64_t begin, int64_t end, float* sums);
};

namespace portable {
LayerNormKernels layer_norm_kernels(DType dtype);
}
namespace avx2 {
LayerNormKernels layer_norm_kernels(DType dtype);
}
namespace avx512 {
LayerNormKernels layer_norm_kernels(DType dtype);
}
namespace avx512bf16 {
using avx512::layer_norm_kernels;
}

}  // namespace pyseq
