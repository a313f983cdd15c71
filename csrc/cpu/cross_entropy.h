// Softmax cross-entropy of the rows of a matrix of logits. The rule is in math/cross_entropy.h.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "math/cross_entropy.h"

namespace pyseq {

struct CrossEntropyInput {
  const void* logits;  // [rows, cols], elements of a row next to each other
  DType dtype;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;      // in elements
  const int64_t* target;   // [rows]
  int64_t ignore_index;    // a row with this target has loss and gradient 0, whatever its logits
  SmoothingWeights weights;
};

// The first row whose target is neither in [0, cols) nor ignore_index; -1 if there is none.
int64_t first_bad_target(const CrossEntropyInput& input);

// Writes, for each row, the loss, the nll, whether the target is the first maximum of the logits, and in stats
// {max, sum of exp(x - max)} for the gradient. `threads` changes no bit of the result.
void cross_entropy_forward(const CrossEntropyInput& input, float* loss, float* nll, uint8_t* correct, float* stats,
                           int threads);

// Writes d(sum_r grad_loss[r] * loss[r])/d(logits) into grad: [rows, cols] without gaps, of the logits' dtype.
void cross_entropy_backward(const CrossEntropyInput& input, const float* grad_loss, const float* stats, void* grad,
                            int threads);

// What an instruction set does with one row of one dtype.
struct RowKernels {
  RowSums (*sums)(const void* row, int64_t cols);
  bool (*contains)(const void* row, int64_t cols, float value);
  void (*gradient)(const void* row, int64_t cols, float max, RowGradient rule, void* out, bool stream);
};

namespace portable {
RowKernels row_kernels(DType dtype);
}
namespace avx2 {
RowKernels row_kernels(DType dtype);
}
namespace avx512 {
RowKernels row_kernels(DType dtype);
}

}  // namespace pyseq
