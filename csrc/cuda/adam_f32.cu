#include "cuda/adam_kernel.cuh"

namespace pyseq {

cudaError_t launch_adam_f32(const CudaAdamDtypes& dtypes, const AdamArguments& a, cudaStream_t stream) {
  switch (dtypes.grad) {
    case 0:
      return launch_with_extra<float, float>(dtypes, a, stream);
    case 1:
      return launch_with_extra<float, __nv_bfloat16>(dtypes, a, stream);
    default:
      return launch_with_extra<float, __half>(dtypes, a, stream);
  }
}

}  // namespace pyseq
