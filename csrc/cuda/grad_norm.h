// The sum of squares of many tensors on the GPU and the norm and clip factor that follow, in one launch. The last step is
// the rule of math/grad_norm.h.
#pragma once

#include <cuda_runtime.h>

#include "cuda/tables.h"

namespace pyseq {

constexpr int norm_inline_segments = 100;  // as many as travel in the arguments of the kernel

struct CudaGradNorm {
  const NormSegment* segments;         // on the host
  const NormSegment* device_segments;  // the same on the device; needed for more than norm_inline_segments
  NormTable table;
  double scale;
  const float* scale_on_device;  // in the place of `scale`, unless null
  double max_norm;               // negative: no clipping
  void* workspace;               // a Workspace
  double* squares;               // one number, or null
  float* result;                 // {norm, factor, found_inf}, or null
};

// Queued on `stream` of the current device. The bits of the result depend on the device, on the sizes and dtypes and on
// the values, not on addresses. Returns an error of the launch.
cudaError_t cuda_grad_norm(const CudaGradNorm& input, cudaStream_t stream);

}  // namespace pyseq
