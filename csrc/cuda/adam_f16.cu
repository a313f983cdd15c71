#include "cuda/adam_kernel.cuh"

namespace pyseq {

cudaError_t launch_adam_f16(const CudaAdamDtypes& dtypes, const AdamArguments& a, cudaStream_t stream) {
  return dtypes.grad == 0 ? launch_with_extra<__half, float>(dtypes, a, stream)
                          : launch_with_extra<__half, __half>(dtypes, a, stream);
}

}  // namespace pyseq
