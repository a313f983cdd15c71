// Softmax cross-entropy on the GPU: plain pointers to device memory and a stream, no other state. The rule is in
// math/cross_entropy.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "math/cross_entropy.h"

namespace pyseq {

// What every function here takes. The kernels are queued on `stream` of the current device; nothing waits for them.
struct CudaCrossEntropy {
  const void* logits;  // [rows, cols], elements of a row next to each other
  int dtype;           // 0 (fp32), 1 (bf16) or 2 (fp16)
  int64_t rows;
  int64_t cols;           // at most 2^28
  int64_t row_stride;     // in elements
  const int64_t* target;  // [rows]
  int64_t ignore_index;   // a row with this target has loss and gradient 0, whatever its logits
  LossRule rule;
  const float* class_weight;   // [cols], or null
  const double* weight_total;  // the sum of class_weight; null with it
  cudaStream_t stream;
};

// What is written for each row.
struct CudaRowResults {
  float* loss;
  float* nll;
  uint8_t* correct;  // the target is the first maximum of the logits
  float* stats;      // {max, sum of exp(x - max)}, after the soft cap
};

// What the losses are weighted with in the sum that is differentiated: of_row[r * stride], or `uniform` if it is null.
struct RowWeighting {
  const float* of_row;
  int64_t stride;
  float uniform;
};

struct CudaGradient {
  void* data;  // [rows, cols] of the logits' dtype
  int64_t row_stride;
};

// A target that is neither in [0, cols) nor ignore_index gives a loss and a gradient of nan: telling the host would
// mean waiting. Every function returns an error of the launch.

cudaError_t cuda_cross_entropy_loss(const CudaCrossEntropy& input, const CudaRowResults& results);

// The gradient of sum_r weight[r] * loss[r], for the stats of the losses. It may be written over the logits themselves,
// with their stride; otherwise it must not touch them.
cudaError_t cuda_cross_entropy_gradient(const CudaCrossEntropy& input, const float* stats,
                                        const RowWeighting& weighting, const CudaGradient& gradient);

// Both at once, reading the logits once where a device's shared memory or its L2 can hold its rows.
cudaError_t cuda_cross_entropy_loss_and_gradient(const CudaCrossEntropy& input, const RowWeighting& weighting,
                                                 const CudaRowResults& results, const CudaGradient& gradient);

// Multiplies a gradient by *factor, which is on the device; a factor of 1 costs no pass over it. Ignored rows stay as
// they are. The logits are not looked at.
cudaError_t cuda_cross_entropy_scale(const CudaCrossEntropy& input, const float* factor, const CudaGradient& gradient);

}  // namespace pyseq
