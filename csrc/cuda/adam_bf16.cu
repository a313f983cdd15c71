#include "cuda/adam_kernel.cuh"

namespace pyseq {

cudaError_t launch_adam_bf16(const CudaAdamDtypes& dtypes, const AdamArguments& a, cudaStream_t stream) {
  return dtypes.grad == 0 ? launch_with_extra<__nv_bfloat16, float>(dtypes, a, stream)
                          : launch_with_extra<__nv_bfloat16, __nv_bfloat16>(dtypes, a, stream);
}

}  // namespace pyseq
