// pyseq._torch: what can only be had with torch's own headers. Built for one torch, and used with no other; the package
// works without it. No file outside this folder includes torch.
#include "torch/torch_module.h"

PYBIND11_MODULE(_torch, module) {
  module.attr("torch_version") = PYSEQ_TORCH_VERSION;
  pyseq::bind_allocator(module);
  pyseq::bind_tensor_access(module);
}
