// Memory on the GPU for tests: exactly as many bytes as asked for, so that compute-sanitizer sees what is beyond.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/workspace.h"
#include "tests/check.h"

#define CHECK_CUDA(call)                                                                                  \
  do {                                                                                                    \
    const cudaError_t check_error = (call);                                                               \
    if (check_error != cudaSuccess) {                                                                     \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(check_error)); \
      std::exit(1);                                                                                       \
    }                                                                                                     \
  } while (false)

// `bytes` of memory, `shift` bytes beyond what the allocator aligns.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes, size_t shift = 0) : bytes_(bytes), shift_(shift) {
    CHECK_CUDA(cudaMalloc(&base_, bytes + shift + (bytes + shift == 0)));
  }
  DeviceMemory(const std::vector<uint8_t>& from, size_t shift = 0) : DeviceMemory(from.size(), shift) { write(from); }
  DeviceMemory(DeviceMemory&& other) : base_(other.base_), bytes_(other.bytes_), shift_(other.shift_) {
    other.base_ = nullptr;
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() {
    if (base_ != nullptr) {
      CHECK_CUDA(cudaFree(base_));
    }
  }

  template <class T = void>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<uint8_t*>(base_) + shift_);
  }
  void write(const std::vector<uint8_t>& from) {
    CHECK(from.size() == bytes_);
    CHECK_CUDA(cudaMemcpy(data(), from.data(), bytes_, cudaMemcpyHostToDevice));
  }
  std::vector<uint8_t> read() const {
    std::vector<uint8_t> to(bytes_);
    CHECK_CUDA(cudaMemcpy(to.data(), data(), bytes_, cudaMemcpyDeviceToHost));
    return to;
  }

 private:
  void* base_ = nullptr;
  size_t bytes_;
  size_t shift_;
};

// One number on the device.
template <class T>
class DeviceNumber {
 public:
  explicit DeviceNumber(T value) : memory_(sizeof(T)) {
    CHECK_CUDA(cudaMemcpy(memory_.data(), &value, sizeof(T), cudaMemcpyHostToDevice));
  }
  T* data() const { return memory_.data<T>(); }
  T get() const {
    T value;
    CHECK_CUDA(cudaMemcpy(&value, memory_.data(), sizeof(T), cudaMemcpyDeviceToHost));
    return value;
  }

 private:
  DeviceMemory memory_;
};

// A workspace of which only the counters are set, so that compute-sanitizer sees a sum that is read before it is written.
class DeviceWorkspace {
 public:
  DeviceWorkspace() : memory_(sizeof(pyseq::Workspace)) {
    CHECK_CUDA(cudaMemset(memory_.data(), 0, 2 * sizeof(unsigned int)));
  }
  void* data() const { return memory_.data(); }

 private:
  DeviceMemory memory_;
};

// Numbers that look random, the same on every run: about -2 to 2.
class Numbers {
 public:
  explicit Numbers(uint32_t seed) : state_(seed * 2654435761u + 1u) {}
  float next() {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<float>(state_ >> 8) / 4194304.0f - 2.0f;
  }

 private:
  uint32_t state_;
};
