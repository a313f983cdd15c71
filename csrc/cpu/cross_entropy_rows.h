// One row of softmax cross-entropy in vectors; included once for each instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/cross_entropy.h"
#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

// A row is read from memory once: a block of it stays in the first-level cache between its maximum and its sums.
static constexpr int64_t block_size = 2048;
static constexpr int unroll = 4;  // independent sums, for the latency of addition
static constexpr int64_t stride = unroll * Vec::width;
static constexpr float infinity = std::numeric_limits<float>::infinity();

template <class T>
static float block_max(const T* x, int64_t count) {
  Vec best[unroll] = {Vec(-infinity), Vec(-infinity), Vec(-infinity), Vec(-infinity)};
  int64_t i = 0;
  for (; i + stride <= count; i += stride) {
    for (int u = 0; u < unroll; ++u) {
      best[u] = max(best[u], load(x + i + u * Vec::width));
    }
  }
  for (; i + Vec::width <= count; i += Vec::width) {
    best[0] = max(best[0], load(x + i));
  }
  if (i < count) {
    best[0] = max(best[0], load(x + i, static_cast<int>(count - i), -infinity));
  }
  return reduce_max(max(max(best[0], best[1]), max(best[2], best[3])));
}

// Adds to exp_sum and shifted_sum what a block contributes, relative to `shift`.
template <class T>
static void add_block(const T* x, int64_t count, float shift, double* exp_sum, double* shifted_sum) {
  const Vec offset(shift);
  Vec exps[unroll] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  Vec shifted[unroll] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  int64_t i = 0;
  for (; i + stride <= count; i += stride) {
    for (int u = 0; u < unroll; ++u) {
      const Vec t = load(x + i + u * Vec::width) - offset;
      exps[u] = exps[u] + exp_nonpositive(t);
      shifted[u] = shifted[u] + t;
    }
  }
  for (; i + Vec::width <= count; i += Vec::width) {
    const Vec t = load(x + i) - offset;
    exps[0] = exps[0] + exp_nonpositive(t);
    shifted[0] = shifted[0] + t;
  }
  *exp_sum += reduce_add((exps[0] + exps[1]) + (exps[2] + exps[3]));
  *shifted_sum += reduce_add((shifted[0] + shifted[1]) + (shifted[2] + shifted[3]));
  for (; i < count; ++i) {
    const float t = to_float(x[i]) - shift;
    *exp_sum += std::exp(t);
    *shifted_sum += t;
  }
}

template <class T>
static RowSums row_sums(const void* row, int64_t cols) {
  const T* x = static_cast<const T*>(row);
  float best = -infinity;
  double exp_sum = 0.0;
  double total = 0.0;  // sum of x
  for (int64_t begin = 0; begin < cols; begin += block_size) {
    const int64_t count = cols - begin < block_size ? cols - begin : block_size;
    const float here = block_max(x + begin, count);
    if (here > best) {
      exp_sum *= std::exp(static_cast<double>(best) - static_cast<double>(here));
      best = here;
    }
    const float shift = best == -infinity ? 0.0f : best;  // -inf - -inf would be nan where exp is 0
    double shifted = 0.0;
    add_block(x + begin, count, shift, &exp_sum, &shifted);
    total += shifted + static_cast<double>(count) * shift;
  }
  return {best, exp_sum, total - static_cast<double>(cols) * best};
}

template <class T>
static bool row_contains(const void* row, int64_t cols, float value) {
  const T* x = static_cast<const T*>(row);
  const Vec wanted(value);
  int64_t i = 0;
  for (; i + Vec::width <= cols; i += Vec::width) {
    if (any_equal(load(x + i), wanted)) {
      return true;
    }
  }
  for (; i < cols; ++i) {
    if (to_float(x[i]) == value) {
      return true;
    }
  }
  return false;
}

template <class T>
static void row_gradient_into(const void* row, int64_t cols, float max, RowGradient rule, void* out, bool streaming) {
  const T* x = static_cast<const T*>(row);
  T* grad = static_cast<T*>(out);
  const Vec offset(max), scale(rule.scale), minus(-rule.offset);
  const auto at = [&](Vec logits) { return fma(exp_nonpositive(logits - offset), scale, minus); };
  int64_t i = 0;
  if (streaming) {
    // A streaming store needs an aligned address, and pays only where whole cache lines are written.
    const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(grad) % 64);
    int64_t head = misaligned == 0 ? 0 : (64 - misaligned) / static_cast<int64_t>(sizeof(T));
    head = head < cols ? head : cols;
    while (i < head) {
      const int count = static_cast<int>(head - i < Vec::width ? head - i : Vec::width);
      store(grad + i, at(load(x + i, count, 0.0f)), count);
      i += count;
    }
    for (; i + stride <= cols; i += stride) {
      for (int u = 0; u < unroll; ++u) {
        stream(grad + i + u * Vec::width, at(load(x + i + u * Vec::width)));
      }
    }
  }
  for (; i + Vec::width <= cols; i += Vec::width) {
    store(grad + i, at(load(x + i)));
  }
  if (i < cols) {
    const int count = static_cast<int>(cols - i);
    store(grad + i, at(load(x + i, count, 0.0f)), count);
  }
}

template <class T>
static RowKernels row_kernels_of() {
  return {row_sums<T>, row_contains<T>, row_gradient_into<T>};
}

RowKernels row_kernels(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return row_kernels_of<float>();
    case DType::bf16:
      return row_kernels_of<bf16>();
    default:
      return row_kernels_of<f16>();
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
