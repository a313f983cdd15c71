// Elements of the dtypes of pyseq/ops/dispatch.py on the host: 0 fp32, 1 bf16, 2 fp16, 3 fp64.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <vector>

inline size_t element_size(int dtype) { return dtype == 0 ? 4 : dtype == 3 ? 8 : 2; }

template <class T>
inline T element(const std::vector<uint8_t>& memory, size_t i) {
  T value;
  std::memcpy(&value, memory.data() + i * sizeof(T), sizeof(T));
  return value;
}

template <class T>
inline void set_element(std::vector<uint8_t>* memory, size_t i, T value) {
  std::memcpy(memory->data() + i * sizeof(T), &value, sizeof(T));
}

inline double number_at(const std::vector<uint8_t>& memory, int dtype, size_t i) {
  switch (dtype) {
    case 0:
      return element<float>(memory, i);
    case 1:
      return __bfloat162float(element<__nv_bfloat16>(memory, i));
    case 2:
      return __half2float(element<__half>(memory, i));
    default:
      return element<double>(memory, i);
  }
}

inline void set_number(std::vector<uint8_t>* memory, int dtype, size_t i, double value) {
  switch (dtype) {
    case 0:
      return set_element(memory, i, static_cast<float>(value));
    case 1:
      return set_element(memory, i, __float2bfloat16(static_cast<float>(value)));
    case 2:
      return set_element(memory, i, __float2half(static_cast<float>(value)));
    default:
      return set_element(memory, i, value);
  }
}
