// What launches of persistent grids share: as many blocks as the device runs at once, and who of them is the last.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/workspace.h"

namespace pyseq {

// The blocks for `work` pieces of work: one wave, since blocks of a second one would run nearly alone.
template <class Kernel>
inline cudaError_t persistent_grid(Kernel kernel, int threads, int64_t work, int* blocks) {
  int device = 0, multiprocessors = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, 0);
  }
  const int64_t wave = std::min<int64_t>(static_cast<int64_t>(multiprocessors) * std::max(resident, 1),
                                         Workspace::max_blocks);
  *blocks = static_cast<int>(std::max<int64_t>(std::min(work, wave), 1));
  return error;
}

// Whether this block is the last of the grid to come here; called by one thread. What that thread has read and written
// before, and what its block has if a barrier lies between, is done when the last block goes on.
__device__ inline bool is_last_block(unsigned int* counter) {
  __threadfence();
  const bool last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;  // wraps to 0, for the next launch
  __threadfence();
  return last;
}

// The row that item belongs to: the last whose `first` is not beyond it. Rows are sorted by `first`, row 0 has 0.
template <class Row>
__device__ inline int find_row(const Row* rows, int count, int64_t item) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (rows[middle].first <= item) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace pyseq
