// Tables that are too long for the arguments of a kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace pyseq {

// Copies `bytes` (a multiple of 8) from the host to `device` as arguments of kernels: `host` is free when this returns,
// nothing waits, and in a CUDA graph the table is part of the graph.
cudaError_t upload_table(void* device, const void* host, size_t bytes, cudaStream_t stream);

}  // namespace pyseq
