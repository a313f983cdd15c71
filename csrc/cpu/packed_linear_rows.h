// Matrix products with packed weights, in vectors; included once for each instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/packed_linear.h"
#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

using Lanes = decltype(Vec::lanes);
static constexpr int panel_vectors = panel_width / Vec::width;
// As many sums as the registers hold beside a vector of weights and a number of x: 12 of 16, 14 of 32. Of the pairs of bf16 a
// processor loads no more than it multiplies, so each number of x is for two panels there.
static constexpr int tile_rows = panel_vectors == 1 ? 14 : 12 / panel_vectors;
#if defined(__AVX512BF16__)
static constexpr bool in_pairs = true;
#else
static constexpr bool in_pairs = false;
#endif
static constexpr int tile_panels = in_pairs ? 2 : 1;

// Rows of x as words like those of the panels.
struct Operand {
  const float* words;
  int64_t stride;
};

// A first-level cache of 8 ways keeps 8 lines that lie a multiple of 4,096 bytes apart, fewer than a tile has rows.
static inline bool collide(int64_t stride, int64_t rows) { return stride % 1024 == 0 && rows > 8; }

#if defined(__AVX512BF16__)
static inline Vec add_product(Vec number, Vec weights, Vec sum) {
  return _mm512_dpbf16_ps(sum.lanes, (__m512bh)number.lanes, (__m512bh)weights.lanes);
}

// Rounds a row to bf16. Whole vectors are written.
static inline void write_words(const float* x, int64_t depth, float* words) {
  for (int64_t k = 0; k < depth; k += Vec::width) {
    const Vec numbers = load(x + k, static_cast<int>(std::min<int64_t>(depth - k, Vec::width)), 0.0f);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + k / 2), (__m256i)_mm512_cvtneps_pbh(numbers.lanes));
  }
}
#else
static inline Vec add_product(Vec number, Vec weights, Vec sum) { return fma(number, weights, sum); }

static inline void write_words(const float* x, int64_t depth, float* words) { std::copy_n(x, depth, words); }
#endif

// Rows as they are, if those can be read; else copies, kept until it is asked for others.
class Operands {
 public:
  Operand of(const float* x, int64_t stride, int64_t rows, int64_t depth) {
    if (!in_pairs && !collide(stride, rows)) {
      return {x, stride};
    }
    int64_t room = (depth + 15) / 16 * (in_pairs ? 8 : 16);
    room += collide(room, rows) ? 16 : 0;
    if (static_cast<int64_t>(words_.size()) < rows * room) {
      words_.resize(static_cast<size_t>(rows * room));
    }
    for (int64_t r = 0; r < rows; ++r) {
      write_words(x + r * stride, depth, words_.data() + r * room);
    }
    return {words_.data(), room};
  }

 private:
  std::vector<float> words_;
};

// What becomes of the sums of a tile before they are written.
struct Ending {
  const float* bias;  // [panel_width] of each panel, or null
  bool continues;     // add what is written there
  bool relu;
};

// A slice of some panels: `words` of each, which lie `stride` floats apart.
struct Panels {
  const float* first;
  int64_t stride, words;
};

// y = x[0 to rows) times the panels. Not inlined, and every loop over sums unrolled: so they stay in registers.
template <int rows, int panels>
__attribute__((noinline)) static void multiply_tile(const Operand& x, const Panels& weights_of, const Ending& ending,
                                                    float* y, int64_t y_stride) {
  constexpr int vectors = panels * panel_vectors;
  const int64_t stride = x.stride, words = weights_of.words;
  const float* panel = weights_of.first;
  Lanes sums[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      sums[r][v] = Vec(0.0f).lanes;
    }
  }
  constexpr int half = (rows + 1) / 2;
  const float* places[2] = {x.words, x.words + half * stride};  // from one, the distances take too many registers
  for (int64_t k = 0; k < words; ++k, panel += panel_width) {
    Lanes weights[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const float* place = panel + v / panel_vectors * weights_of.stride;
      weights[v] = load(place + v % panel_vectors * Vec::width).lanes;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec number(places[r / half][r % half * stride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        sums[r][v] = add_product(number, Vec(weights[v]), Vec(sums[r][v])).lanes;
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      float* place = y + r * y_stride + v * Vec::width;
      Vec sum(sums[r][v]);
      if (ending.continues) {
        sum = sum + load(place);
      }
      if (ending.bias) {
        sum = sum + load(ending.bias + v * Vec::width);
      }
      store(place, ending.relu ? larger(sum, Vec(0.0f)) : sum);
    }
  }
}

// multiply_tile for a number of rows that is known at run time, at most `rows`.
template <int rows, int panels>
static inline void multiply_rows(int count, const Operand& x, const Panels& weights, const Ending& ending, float* y,
                                 int64_t y_stride) {
  if constexpr (rows > 1) {
    if (count < rows) {
      multiply_rows<rows - 1, panels>(count, x, weights, ending, y, y_stride);
      return;
    }
  }
  multiply_tile<rows, panels>(x, weights, ending, y, y_stride);
}

// multiply_rows of all rows. Each tile begins to load its share of the panels that are `next`, which would keep the first
// of the next tiles waiting; null: none.
template <int panels>
static inline void multiply_slice(const Operand& x, int64_t rows, const Panels& weights, const float* next,
                                  const Ending& ending, float* y, int64_t y_stride) {
  const int64_t share = weights.words * tile_rows / rows + 1;
  for (int64_t row = 0; row < rows; row += tile_rows) {
    const int64_t first = row / tile_rows * share, last = std::min(weights.words, first + share);
    for (int panel = 0; next && panel < panels; ++panel) {
      for (int64_t i = first; i < last; ++i) {
        __builtin_prefetch(next + panel * weights.stride + i * panel_width);
      }
    }
    const int count = static_cast<int>(rows - row < tile_rows ? rows - row : tile_rows);
    multiply_rows<tile_rows, panels>(count, {x.words + row * x.stride, x.stride}, weights, ending, y + row * y_stride,
                                     y_stride);
  }
}

// Words of a panel that stay in the first-level cache while all rows of x pass by.
static constexpr int64_t slice_words = 256;

// y[0 to rows) = x W^T + b, or its positive part, for the columns of panels [first, last), the first of them at y[0]; y has
// room for all columns of the last panel.
static inline void multiply_panels(const Operand& x, int64_t rows, const PackedLinear& weights, int64_t first,
                                   int64_t last, float* y, int64_t y_stride, bool relu = false) {
  const int64_t all = weights.words(), stride = all * panel_width;
  const bool fetches = rows > 4 * tile_rows;  // else slices pass so fast that the processor fetches ahead by itself
  for (int64_t p = first; p < last; p += tile_panels) {
    const bool whole = p + tile_panels <= last;
    const float* panel = weights.panels + p * stride;
    for (int64_t k = 0; k < all; k += slice_words) {
      const int64_t words = std::min(slice_words, all - k);
      const bool last_slice = k + words == all;
      const Ending ending{last_slice && weights.bias ? weights.bias + p * panel_width : nullptr, k > 0,
                          last_slice && relu};
      const float* next = last_slice ? panel + tile_panels * stride : panel + (k + words) * panel_width;
      if (!fetches || (last_slice && p + 2 * tile_panels > last)) {
        next = nullptr;
      }
      const auto multiply = whole ? &multiply_slice<tile_panels> : &multiply_slice<1>;
      multiply({x.words + k, x.stride}, rows, {panel + k * panel_width, stride, words}, next, ending,
               y + (p - first) * panel_width, y_stride);
    }
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
