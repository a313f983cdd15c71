// 16 bytes of a row at a time, whatever its alignment.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pyseq {

template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <class T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half(value);
}

// The elements before the first address that is a multiple of 16, and the number of whole packs after them.
struct Split {
  int64_t head;
  int64_t packs;
};

template <class T>
__device__ inline Split split(const T* row, int64_t cols) {
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
  int64_t head = misaligned == 0 ? 0 : Pack<T>::size - misaligned;
  head = head < cols ? head : cols;
  return {head, (cols - head) / Pack<T>::size};
}

template <class T>
__device__ inline Pack<T> load_pack(const T* p) {
  const uint4 bits = *reinterpret_cast<const uint4*>(p);
  return *reinterpret_cast<const Pack<T>*>(&bits);
}

// Written once and not read again by this kernel: leave the cache to the logits.
template <class T>
__device__ inline void store_pack(T* p, const Pack<T>& pack) {
  __stcs(reinterpret_cast<uint4*>(p), *reinterpret_cast<const uint4*>(&pack));
}

}  // namespace pyseq
