// Softmax cross-entropy on the GPU: plain pointers to device memory and a stream, no other state.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

extern "C" {

// Arguments are those of csrc/cpu/cross_entropy.h; dtype is 0 (fp32), 1 (bf16) or 2 (fp16). The kernels are queued on
// `stream` of the current device; nothing waits for them. A target that is neither in [0, cols) nor ignore_index gives
// a loss and a gradient of nan: telling the host would mean waiting. Returns an error of the launch.
cudaError_t pyseq_cross_entropy_forward(const void* logits, int dtype, const int64_t* target, int64_t rows,
                                        int64_t cols, int64_t row_stride, int64_t ignore_index, double nll_weight,
                                        double smooth_weight, float* loss, float* nll, uint8_t* correct, float* stats,
                                        cudaStream_t stream);

cudaError_t pyseq_cross_entropy_backward(const void* logits, int dtype, const int64_t* target, int64_t rows,
                                         int64_t cols, int64_t row_stride, int64_t ignore_index, double nll_weight,
                                         double smooth_weight, const float* grad_loss, const float* stats, void* grad,
                                         cudaStream_t stream);
}
