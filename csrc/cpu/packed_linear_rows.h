// Matrix products with packed weights, in vectors; included once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/packed_linear.h"
#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

using Lanes = decltype(Vec::lanes);
static constexpr int panel_vectors = panel_width / Vec::width;
// As many sums as the registers hold beside a vector of weights and a number of x: 12 of 16, 14 of 32.
static constexpr int tile_rows = panel_vectors == 1 ? 14 : 12 / panel_vectors;

// store(row, column, sums) for each vector of x[0 to rows) times one panel.
template <int rows, class Store>
static inline void multiply_tile(const float* x, int64_t stride, const float* panel, int64_t depth, const Store& store) {
  Lanes sums[rows][panel_vectors];
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < panel_vectors; ++v) {
      sums[r][v] = Vec(0.0f).lanes;
    }
  }
  for (int64_t k = 0; k < depth; ++k, panel += panel_width) {
    Lanes weights[panel_vectors];
    for (int v = 0; v < panel_vectors; ++v) {
      weights[v] = load(panel + v * Vec::width).lanes;
    }
    for (int r = 0; r < rows; ++r) {
      const Vec number(x[r * stride + k]);
      for (int v = 0; v < panel_vectors; ++v) {
        sums[r][v] = fma(number, Vec(weights[v]), Vec(sums[r][v])).lanes;
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < panel_vectors; ++v) {
      store(r, v * Vec::width, Vec(sums[r][v]));
    }
  }
}

// multiply_tile for a number of rows that is known at run time, at most `rows`.
template <int rows, class Store>
static inline void multiply_rows(int count, const float* x, int64_t stride, const float* panel, int64_t depth,
                                 const Store& store) {
  if constexpr (rows > 1) {
    if (count < rows) {
      multiply_rows<rows - 1>(count, x, stride, panel, depth, store);
      return;
    }
  }
  multiply_tile<rows>(x, stride, panel, depth, store);
}

// y[0 to rows) = x W^T + b for the columns of panels [first, last), the first of them at y[0]; y has room for all columns
// of the last panel. `finish` makes of each vector what is written.
template <class Finish>
static inline void multiply_panels(const float* x, int64_t stride, int64_t rows, const PackedLinear& weights,
                                   int64_t first, int64_t last, float* y, int64_t y_stride, const Finish& finish) {
  for (int64_t p = first; p < last; ++p) {
    const float* panel = weights.panels + p * weights.depth * panel_width;
    const float* bias = weights.bias ? weights.bias + p * panel_width : nullptr;
    for (int64_t row = 0; row < rows; row += tile_rows) {
      const int count = static_cast<int>(rows - row < tile_rows ? rows - row : tile_rows);
      float* out = y + row * y_stride + (p - first) * panel_width;
      multiply_rows<tile_rows>(count, x + row * stride, stride, panel, weights.depth,
                               [&](int r, int column, Vec sum) {
                                 if (bias) {
                                   sum = sum + load(bias + column);
                                 }
                                 float* place = out + r * y_stride + column;
                                 store(place, finish(sum, place));
                               });
    }
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
