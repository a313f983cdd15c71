// What the bindings of every operation check.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/dtype.h"

namespace pyseq {

template <class T>
static T* pointer(uintptr_t address, size_t alignment, int64_t elements, const char* name) {
  if (elements > 0 && (address == 0 || address % alignment != 0)) {
    throw std::invalid_argument(std::string(name) + " is null or not aligned to its elements");
  }
  return reinterpret_cast<T*>(address);
}

static inline DType checked_dtype(int number) {
  if (number < 0 || number > 2) {
    throw std::invalid_argument("dtype must be 0 (fp32), 1 (bf16) or 2 (fp16)");
  }
  return static_cast<DType>(number);
}

}  // namespace pyseq
