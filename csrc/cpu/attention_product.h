// Products of small fp32 matrices in scratch memory, for attention.
#pragma once

#include <cstdint>

#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

// Row-major. Rows have room for whole vectors, and what is beyond their end may be overwritten.
struct Matrix {
  float* data;
  int64_t stride;

  float* row(int64_t i) const { return data + i * stride; }
  Matrix from(int64_t row, int64_t col = 0) const { return {data + row * stride + col, stride}; }
};

// Tiles of 12 sums, of as many rows as that leaves: with their factors they fit 16 registers.
static constexpr int tile_rows = 6;  // at most
static constexpr int rows_beside(int vectors) { return vectors == 3 ? 4 : tile_rows; }

// A tile of c (+)= a b, or of a^T b.
template <int rows, int vectors, bool transposed, bool add>
static inline void tile_product(Matrix a, Matrix b, Matrix c, int64_t depth) {
  Vec sums[rows][vectors];
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v) {
      sums[i][v] = Vec(0.0f);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[vectors];
    for (int v = 0; v < vectors; ++v) {
      right[v] = load(b.row(k) + v * Vec::width);
    }
    for (int i = 0; i < rows; ++i) {
      const Vec left(transposed ? a.row(k)[i] : a.row(i)[k]);
      for (int v = 0; v < vectors; ++v) {
        sums[i][v] = fma(left, right[v], sums[i][v]);
      }
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v) {
      float* const to = c.row(i) + v * Vec::width;
      store(to, add ? load(to) + sums[i][v] : sums[i][v]);  // a sum of short sums is nearer than one long sum
    }
  }
}

template <int rows, int vectors, bool transposed, bool add>
static inline void last_rows(int64_t count, Matrix a, Matrix b, Matrix c, int64_t depth) {
  if (count == rows) {
    tile_product<rows, vectors, transposed, add>(a, b, c, depth);
  } else if constexpr (rows > 1) {
    last_rows<rows - 1, vectors, transposed, add>(count, a, b, c, depth);
  }
}

template <int vectors, bool transposed, bool add>
static void panel_product(Matrix a, Matrix b, Matrix c, int64_t rows, int64_t depth) {
  constexpr int step = rows_beside(vectors);
  int64_t i = 0;
  for (; i + step <= rows; i += step) {
    tile_product<step, vectors, transposed, add>(transposed ? a.from(0, i) : a.from(i), b, c.from(i), depth);
  }
  last_rows<step - 1, vectors, transposed, add>(rows - i, transposed ? a.from(0, i) : a.from(i), b, c.from(i), depth);
}

// c = a b, with add c += a b, with transposed a^T b. c is [rows, cols], b is [depth, cols].
template <bool transposed, bool add>
static void product(Matrix a, Matrix b, Matrix c, int64_t rows, int64_t cols, int64_t depth) {
  int64_t j = 0;
  for (int64_t vectors = (cols + Vec::width - 1) / Vec::width; vectors > 0; j += 2 * Vec::width) {
    const Matrix right = b.from(0, j), out = c.from(0, j);
    if (vectors == 3) {
      panel_product<3, transposed, add>(a, right, out, rows, depth);
      return;
    }
    if (vectors == 1) {
      panel_product<1, transposed, add>(a, right, out, rows, depth);
      return;
    }
    panel_product<2, transposed, add>(a, right, out, rows, depth);
    vectors -= 2;
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
