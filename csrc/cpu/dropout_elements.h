// Dropout of part of an array in vectors; included once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/dropout.h"
#include "cpu/dropout_vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

template <class T, bool add>
static void dropout_block(const T* x, const T* residual, T* out, int64_t count, const uint16_t* halves,
                          const Dropout& rule) {
  const Vec scale(rule.scale);
  int64_t i = 0;
  for (; i + Vec::width <= count; i += Vec::width) {
    const Vec kept = keep_above(load(x + i) * scale, halves + i, rule.limit);
    store(out + i, add ? kept + load(residual + i) : kept);
  }
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    const Vec kept = keep_above(load(x + i, rest, 0.0f) * scale, halves + i, rule.limit);
    store(out + i, add ? kept + load(residual + i, rest, 0.0f) : kept, rest);
  }
}

template <class T>
static void dropout_elements(const void* x, const void* residual, void* out, int64_t begin, int64_t count,
                             const Dropout& rule) {
  Halves halves;
  const T* in = static_cast<const T*>(x);
  const T* added = static_cast<const T*>(residual);
  T* to = static_cast<T*>(out);
  for (int64_t i = begin; i < begin + count; i += Halves::most) {
    const int64_t left = begin + count - i;
    const int64_t here = left < Halves::most ? left : Halves::most;
    const uint16_t* random = halves.of(rule.stream, i, here);
    if (added) {
      dropout_block<T, true>(in + i, added + i, to + i, here, random, rule);
    } else {
      dropout_block<T, false>(in + i, nullptr, to + i, here, random, rule);
    }
  }
}

DropoutKernel dropout_kernel(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return dropout_elements<float>;
    case DType::bf16:
      return dropout_elements<bf16>;
    default:
      return dropout_elements<f16>;
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
