// Tiles of a matrix product, whose sums stay in registers; included once for each instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

// Two vectors wide, and as high as registers last: 16 of them, or 32.
static constexpr int tile_vectors = 2;
static constexpr int tile_rows = Vec::width == 16 ? 12 : 6;
static constexpr int tile_cols = tile_vectors * Vec::width;

static constexpr int turn = 8;              // steps of the depth, in the loop of a tile
static constexpr int64_t line_floats = 16;  // of a cache

static const float* at(const StridedMatrix& m, int64_t row, int64_t col) {
  return m.data + row * m.row_stride + col * m.col_stride;
}

// Memory that is read soon. Few rows times a large matrix would wait for it.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const StridedMatrix& m, int64_t row, int64_t rows, int64_t col, int64_t cols)
      : from(at(m, row, col)), stride(m.col_stride == 1 ? m.row_stride : m.col_stride),
        floats(m.col_stride == 1 ? cols : rows), left(m.col_stride == 1 ? rows : cols) {}

  int64_t lines() const { return left * ceil_div(floats, line_floats); }

  void fetch(int64_t lines) {
    for (; lines > 0 && left > 0; --lines) {
      __builtin_prefetch(from + place);
      place += line_floats;
      if (place >= floats) {
        place = 0;
        from += stride;
        --left;
      }
    }
  }

 private:
  const float* from = nullptr;  // pieces of `floats` neighbours, `stride` apart
  int64_t stride = 0, floats = 0, left = 0;
  int64_t place = 0;  // in a piece
};

struct Tile {
  int64_t depth;
  const float* a;  // element (r, k) is a[r * a_row + k * a_step]
  int64_t a_row, a_step;
  const float* b;  // element (k, c) is b[k * b_step + c]
  int64_t b_step;
  float* c;
  int64_t c_stride;
  int cols;  // of C to write
  bool add;  // to what C holds
  const float* bias;
  bool relu;
  Ahead* ahead;
  int64_t lines;  // of it, to fetch in a turn of the loop: many at once would make the reads of a tile wait
};

// Not inlined: among other code GCC leaves sums in memory.
template <int Rows, int Vectors>
__attribute__((noinline)) static void multiply_tile(const Tile& t) {
  const float* a[Rows];
  Vec sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    a[r] = t.a + r * t.a_row;
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      __builtin_prefetch(t.c + r * t.c_stride + v * Vec::width, 1);
      sums[r][v] = Vec(0.0f);
    }
  }
  const float* b = t.b;
  int64_t place = 0;
  const auto step = [&] {
    Vec right[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      right[v] = load(b + v * Vec::width);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vec left(a[r][place]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        sums[r][v] = fma(left, right[v], sums[r][v]);
      }
    }
    place += t.a_step;
    b += t.b_step;
  };
  int64_t k = 0;
  for (; k + turn <= t.depth; k += turn) {
    t.ahead->fetch(t.lines);
#pragma GCC unroll 8
    for (int i = 0; i < turn; ++i) {
      step();
    }
  }
  for (; k < t.depth; ++k) {
    step();
  }
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    const int count = std::min(Vec::width, t.cols - v * Vec::width);
    const bool whole = count == Vec::width;
    Vec bias(0.0f);
    if (t.bias) {
      bias = whole ? load(t.bias + v * Vec::width) : load(t.bias + v * Vec::width, count, 0.0f);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      float* c = t.c + r * t.c_stride + v * Vec::width;
      Vec sum = sums[r][v];
      if (t.add) {
        sum = sum + (whole ? load(c) : load(c, count, 0.0f));
      }
      if (t.bias) {
        sum = sum + bias;
      }
      if (t.relu) {
        sum = max(Vec(0.0f), sum);  // nan stays
      }
      if (whole) {
        store(c, sum);
      } else {
        store(c, sum, count);
      }
    }
  }
}

template <int Rows>
static void multiply_some_rows(const Tile& t, int rows) {
  if constexpr (Rows > 0) {
    if (rows < Rows) {
      multiply_some_rows<Rows - 1>(t, rows);
    } else if (t.cols > Vec::width) {
      multiply_tile<Rows, 2>(t);
    } else {
      multiply_tile<Rows, 1>(t);
    }
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
