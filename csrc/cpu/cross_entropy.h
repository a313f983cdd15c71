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
  LossRule rule;
  const float* class_weights = nullptr;  // [cols], or null
};

// What is written for each row: the loss, the nll, whether the target is the first maximum of the logits, and
// {max, sum of exp(x - max)} of the capped logits.
struct CrossEntropyOutput {
  float* loss;
  float* nll;
  uint8_t* correct;
  float* stats;  // [rows, 2]
};

// Where a gradient of the logits' dtype is written: [rows, cols], elements of a row next to each other.
struct CrossEntropyGradient {
  void* grad;
  int64_t row_stride;  // in elements
};

// The first row whose target is neither in [0, cols) nor ignore_index; -1 if there is none.
int64_t first_bad_target(const CrossEntropyInput& input);

// In all three, `threads` changes no bit of the result.
void cross_entropy_forward(const CrossEntropyInput& input, const CrossEntropyOutput& output, int threads);

// Writes d(sum_r grad_loss[r] * loss[r])/d(logits), from the stats of the forward pass. The gradient may take the
// place of the logits.
void cross_entropy_backward(const CrossEntropyInput& input, const float* grad_loss, const float* stats,
                            const CrossEntropyGradient& gradient, int threads);

// Both at once, each row while it is in the cache: the gradient is that of sum_r row_weight[r * weight_stride] * loss[r].
// It may take the place of the logits.
void cross_entropy_loss_and_gradient(const CrossEntropyInput& input, const float* row_weight, int64_t weight_stride,
                                     const CrossEntropyOutput& output, const CrossEntropyGradient& gradient,
                                     int threads);

// Over the rows that are not ignored.
struct CrossEntropySums {
  double loss, nll, z_loss;
  int64_t correct;
  double divisor;  // of a mean of the losses: the number of rows, or the sum of the class weights of their targets
};

// Both at once, and nothing is written for each row. The gradient is that of the sum of the losses or, if `mean`, of that
// over the divisor.
CrossEntropySums cross_entropy_sums_and_gradient(const CrossEntropyInput& input, bool mean,
                                                 const CrossEntropyGradient& gradient, int threads);

// Elements of a row between which the shift of the exponentials may change. A block stays in the first-level cache
// between its maximum and its sums, so that a row is read from memory once.
constexpr int64_t cross_entropy_block = 2048;

// The exponentials of a row, kept from its sums for its gradient: exp(x_v - shift of v's block).
struct KeptExponentials {
  float* values;  // [cols]
  float* shifts;  // [blocks]
};

// How the gradient of a row is made from its exponentials.
struct GradientRule {
  RowGradient row;
  const float* class_weights;  // [cols], or null
  const float* slopes;         // [cols], of the soft cap; null without one
};

// The gradient of a row that is still to be made from its exponentials. It is written while the sums of the next row
// are computed, so that the processor reads and writes memory at the same time.
struct PendingGradient {
  KeptExponentials kept;
  float max;
  GradientRule rule;
  void* out;
  bool stream;  // bypass the cache
  int64_t target;
  float target_value;  // the gradient of the target's logit, which is written last
};

// What an instruction set does with one row of one dtype.
struct RowKernels {
  // The logits after the soft cap, and its slopes there.
  void (*cap)(const void* row, int64_t cols, float soft_cap, float* capped, float* slopes);
  // `kept` and `pending` may be null. A pending gradient has no class weights and no soft cap.
  RowSums (*sums)(const void* row, int64_t cols, const float* class_weights, const KeptExponentials* kept,
                  const PendingGradient* pending);
  bool (*contains)(const void* row, int64_t cols, float value);
  // From the row, from the capped row, and from the exponentials that `sums` kept. The target is left to the caller.
  void (*gradient)(const void* row, int64_t cols, float max, const GradientRule& rule, void* out, bool stream);
  void (*gradient_of_capped)(const void* capped, int64_t cols, float max, const GradientRule& rule, void* out,
                             bool stream);
  void (*gradient_of_kept)(const PendingGradient& pending, int64_t cols);
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
