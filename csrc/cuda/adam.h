// Adam on the GPU in one launch: the rule of math/adam.h over a table of memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/tables.h"
#include "math/adam.h"

namespace pyseq {

constexpr int adam_inline_segments = 50;  // as many as travel in the arguments of the kernel

// What there is beside 16-bit parameters.
enum class CudaExtra : int { none = 0, master = 1, remainder = 2 };

// 0 (fp32), 1 (bf16) or 2 (fp16), as in pyseq/ops/dispatch.py.
struct CudaAdamDtypes {
  int param, grad, state;
  CudaExtra extra;
};

// fp32 numbers on the device; null where there is none.
struct CudaAdamScalars {
  float* step;  // how many steps have been made; never null. Advanced by one, by the device
  const float* lr;
  const float* factor;
  const float* grad_scale;
  const float* found_inf;
};

struct CudaAdam {
  const AdamSegment* segments;         // on the host
  const AdamSegment* device_segments;  // the same on the device; needed for more than adam_inline_segments
  int count;
  int64_t chunks;
  CudaAdamDtypes dtypes;
  AdamRule rule;
  double lr;  // where scalars.lr is null
  CudaAdamScalars scalars;
  bool zero_grads;
  uint64_t seed;    // of stochastic rounding
  void* workspace;  // a Workspace
};

// Whether there is a kernel for these dtypes.
bool cuda_adam_takes(const CudaAdamDtypes& dtypes);

// Queued on `stream` of the current device. Returns an error of the launch.
cudaError_t cuda_adam(const CudaAdam& input, cudaStream_t stream);

}  // namespace pyseq
