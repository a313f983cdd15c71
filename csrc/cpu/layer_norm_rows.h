// Rows of layer normalisation in vectors; included once for each instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/dropout_vec.h"
#include "cpu/layer_norm.h"

namespace pyseq {
namespace PYSEQ_ISA {

// step(offset, count) for the vectors of [0, cols); count is Vec::width but for the last.
template <class Step>
static inline void for_vectors(int64_t cols, const Step& step) {
  int64_t i = 0;
  for (; i + Vec::width <= cols; i += Vec::width) {
    step(i, Vec::width);
  }
  if (i < cols) {
    step(i, static_cast<int>(cols - i));
  }
}

template <class T>
static inline Vec load_some(const T* p, int count) {
  return count == Vec::width ? load(p) : load(p, count, 0.0f);
}
template <class T>
static inline void store_some(T* p, Vec a, int count) {
  if (count == Vec::width) {
    store(p, a);
  } else {
    store(p, a, count);
  }
}
static inline Vec only_first(Vec a, int count) {
  if (count == Vec::width) {
    return a;
  }
  float lanes[Vec::width];
  store(lanes, a);
  return load(lanes, count, 0.0f);
}

// Blocks of a row. Sums are fp32 within a block and fp64 across blocks: the short ones are for sums that decide digits.
static constexpr int64_t short_block = 16 * Vec::width;

template <class Block>
static inline void for_blocks(int64_t cols, int64_t size, const Block& block) {
  for (int64_t begin = 0; begin < cols; begin += size) {
    block(begin, cols - begin < size ? cols - begin : size);
  }
}

// z of a row, rounded to T, into work and where it is kept; returns its sum.
template <class T>
static double add_row(const LayerNormRows& shape, const LayerNormForward& data, int64_t row, Halves* halves,
                      float* work) {
  const int64_t start = row * shape.cols;
  const T* x = static_cast<const T*>(data.x) + start;
  const T* residual = data.residual ? static_cast<const T*>(data.residual) + start : nullptr;
  T* kept = data.z ? static_cast<T*>(data.z) + start : nullptr;
  const bool drops = shape.dropout.limit >= 0;
  const Vec scale(shape.dropout.scale);
  double total = 0.0;
  for_blocks(shape.cols, Halves::most, [&](int64_t begin, int64_t length) {
    const uint16_t* random = drops ? halves->of(shape.dropout.stream, start + begin, length) : nullptr;
    Vec sum(0.0f);
    for_vectors(length, [&](int64_t i, int count) {
      Vec z = load_some(x + begin + i, count);
      if (drops) {
        z = keep_above(z * scale, random + i, shape.dropout.limit);
      }
      if (residual) {
        z = z + load_some(residual + begin + i, count);
      }
      if (kept) {
        store_some(kept + begin + i, z, count);
        z = load_some(kept + begin + i, count);
      }
      store_some(work + begin + i, z, count);
      sum = sum + z;
    });
    total += reduce_add(sum);
  });
  return total;
}

// Sums over a row of z - center and of its squares. The first is not 0: center is rounded, and so was the sum that it
// comes from.
struct Distances {
  double sum;
  double squares;
};

static Distances distances(const float* z, int64_t cols, float center) {
  const Vec from(center);
  Distances total = {0.0, 0.0};
  for_blocks(cols, short_block, [&](int64_t begin, int64_t length) {
    Vec sum(0.0f), squares(0.0f);
    for_vectors(length, [&](int64_t i, int count) {
      const Vec d = only_first(load_some(z + begin + i, count) - from, count);
      sum = sum + d;
      squares = fma(d, d, squares);
    });
    total.sum += reduce_add(sum);
    total.squares += reduce_add(squares);
  });
  return total;
}

template <class T>
static void forward_rows(const LayerNormRows& shape, const LayerNormForward& data, int64_t begin, int64_t end,
                         float* work) {
  Halves halves;
  const double cols = static_cast<double>(shape.cols);
  for (int64_t row = begin; row < end; ++row) {
    const float mean = static_cast<float>(add_row<T>(shape, data, row, &halves, work) / cols);
    const Distances apart = distances(work, shape.cols, mean);
    const double rest = apart.sum / cols;  // the exact mean is mean + rest
    const double variance = std::max(apart.squares / cols - rest * rest, 0.0);
    const float rstd = static_cast<float>(1.0 / std::sqrt(variance + data.eps));
    data.mean[row] = static_cast<float>(mean + rest);
    data.rstd[row] = rstd;
    const Vec center(mean), factor(rstd), shift(static_cast<float>(-rest * rstd));
    T* y = static_cast<T*>(data.y) + row * shape.cols;
    for_vectors(shape.cols, [&](int64_t i, int count) {
      const Vec z = load_some(work + i, count);
      Vec result = fma(z - center, factor, shift);
      if (shape.weight) {
        result = result * load_some(shape.weight + i, count);
      }
      if (shape.bias) {
        result = result + load_some(shape.bias + i, count);
      }
      store_some(y + i, result, count);
    });
  }
}

struct RowMeans {
  float gradient;    // mean of weight * grad_y
  float projection;  // mean of weight * grad_y * (z - mean) * rstd
};

template <class T>
static RowMeans add_gradients(const LayerNormRows& shape, const T* grad_y, const T* z, float mean, float rstd,
                              float* sums) {
  const Vec center(mean), factor(rstd);
  double gradient = 0.0, projection = 0.0;
  for_blocks(shape.cols, short_block, [&](int64_t begin, int64_t length) {
    Vec first(0.0f), second(0.0f);
    for_vectors(length, [&](int64_t j, int count) {
      const int64_t i = begin + j;
      const Vec g = load_some(grad_y + i, count);
      const Vec normal = (load_some(z + i, count) - center) * factor;
      store_some(sums + i, fma(g, normal, load_some(sums + i, count)), count);
      store_some(sums + shape.cols + i, g + load_some(sums + shape.cols + i, count), count);
      const Vec weighted = shape.weight ? g * load_some(shape.weight + i, count) : g;
      first = first + weighted;
      second = fma(weighted, normal, second);
    });
    gradient += reduce_add(first);
    projection += reduce_add(second);
  });
  const double cols = static_cast<double>(shape.cols);
  return {static_cast<float>(gradient / cols), static_cast<float>(projection / cols)};
}

template <class T>
static void backward_rows(const LayerNormRows& shape, const LayerNormBackward& data, int64_t begin, int64_t end,
                          float* sums) {
  Halves halves;
  std::memset(sums, 0, static_cast<size_t>(2 * shape.cols) * sizeof(float));
  const bool drops = shape.dropout.limit >= 0;
  const Vec scale(shape.dropout.scale);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t start = row * shape.cols;
    const auto in = [start](const void* p) { return p ? static_cast<const T*>(p) + start : nullptr; };
    const auto out = [start](void* p) { return p ? static_cast<T*>(p) + start : nullptr; };
    const T *grad_y = in(data.grad_y), *z = in(data.z), *grad_z = in(data.grad_z);
    T *grad_residual = out(data.grad_residual), *grad_x = out(data.grad_x);
    const float mean = data.mean[row], rstd = data.rstd[row];
    const RowMeans means = add_gradients(shape, grad_y, z, mean, rstd, sums);
    const Vec center(mean), factor(rstd), gradient(means.gradient), projection(means.projection);
    for_blocks(shape.cols, Halves::most, [&](int64_t first, int64_t length) {
      const uint16_t* random = drops && grad_x ? halves.of(shape.dropout.stream, start + first, length) : nullptr;
      for_vectors(length, [&](int64_t j, int count) {
        const int64_t i = first + j;
        Vec g = load_some(grad_y + i, count);
        if (shape.weight) {
          g = g * load_some(shape.weight + i, count);
        }
        const Vec normal = (load_some(z + i, count) - center) * factor;
        Vec result = (g - gradient - normal * projection) * factor;
        if (grad_z) {
          result = result + load_some(grad_z + i, count);
        }
        if (grad_residual) {
          store_some(grad_residual + i, result, count);
        }
        if (grad_x) {
          store_some(grad_x + i, drops ? keep_above(result * scale, random + j, shape.dropout.limit) : result, count);
        }
      });
    });
  }
}

template <class T>
static LayerNormKernels layer_norm_kernels_of() {
  return {forward_rows<T>, backward_rows<T>};
}

LayerNormKernels layer_norm_kernels(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return layer_norm_kernels_of<float>();
    case DType::bf16:
      return layer_norm_kernels_of<bf16>();
    default:
      return layer_norm_kernels_of<f16>();
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
