#include "cuda/adam.h"

#include <algorithm>

#include "cuda/adam_kernel.cuh"

namespace pyseq {

// Gradients are of the parameters' type or fp32, or of any type beside fp32 parameters.
bool cuda_adam_takes(const CudaAdamDtypes& dtypes) {
  const bool known = dtypes.param >= 0 && dtypes.param <= 2 && dtypes.grad >= 0 && dtypes.grad <= 2;
  const bool grad_fits = dtypes.grad == 0 || dtypes.grad == dtypes.param || dtypes.param == 0;
  const bool extra_fits = dtypes.extra == CudaExtra::none ||
                          (dtypes.extra == CudaExtra::master && dtypes.param != 0) ||
                          (dtypes.extra == CudaExtra::remainder && dtypes.param == 1);
  return known && grad_fits && extra_fits && (dtypes.state == 0 || dtypes.state == 1);
}

cudaError_t cuda_adam(const CudaAdam& input, cudaStream_t stream) {
  AdamArguments a{};
  a.count = input.count;
  a.zero_grads = input.zero_grads;
  a.chunks = input.chunks;
  a.rule = input.rule;
  a.lr = input.lr;
  a.scalars = input.scalars;
  a.seed = input.seed;
  a.counter = &static_cast<Workspace*>(input.workspace)->adam_counter;
  const bool needs_table = a.count > adam_inline_segments;
  if (!cuda_adam_takes(input.dtypes) || (needs_table && input.device_segments == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (needs_table) {
    a.device_segments = input.device_segments;
  } else {
    std::copy_n(input.segments, a.count, a.segments);
  }
  switch (input.dtypes.param) {
    case 0:
      return launch_adam_f32(input.dtypes, a, stream);
    case 1:
      return launch_adam_bf16(input.dtypes, a, stream);
    default:
      return launch_adam_f16(input.dtypes, a, stream);
  }
}

}  // namespace pyseq
