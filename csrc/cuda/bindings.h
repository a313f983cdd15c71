// What the bindings of every operation check.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/table_upload.h"

namespace pyseq {

template <class T>
static T* pointer(uintptr_t address, size_t alignment, const char* name) {
  if (address == 0 || address % alignment != 0) {
    throw std::invalid_argument(std::string(name) + " is null or not aligned to its elements");
  }
  return reinterpret_cast<T*>(address);
}

template <class T>
static T* optional_pointer(uintptr_t address, size_t alignment, const char* name) {
  return address == 0 ? nullptr : pointer<T>(address, alignment, name);
}

static inline cudaStream_t stream_of(uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

static inline void check_launch(cudaError_t error, const char* operation) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("pyseq's CUDA kernel of ") + operation + " could not be launched: " +
                             cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
  }
}

}  // namespace pyseq
