// Matrix products with packed weights, in vectors; included once for each instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/packed_linear.h"
#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

using Lanes = decltype(Vec::lanes);
static constexpr int panel_vectors = panel_width / Vec::width;
// As many sums as the registers hold beside a vector of weights and a number of x: 12 of 16, 14 of 32.
static constexpr int tile_rows = panel_vectors == 1 ? 14 : 12 / panel_vectors;

// Rows of x as words like those of the panels.
struct Operand {
  const float* words;
  int64_t stride;
};

#if defined(__AVX512BF16__)
static inline Vec add_product(Vec number, Vec weights, Vec sum) {
  return _mm512_dpbf16_ps(sum.lanes, (__m512bh)number.lanes, (__m512bh)weights.lanes);
}

// Rounds rows to bf16 and keeps them until it is asked for others.
class Operands {
 public:
  Operand of(const float* x, int64_t stride, int64_t rows, int64_t depth) {
    const int64_t words = (depth + 1) / 2, room = (words + 7) / 8 * 8;
    if (static_cast<int64_t>(words_.size()) < rows * room) {
      words_.resize(static_cast<size_t>(rows * room));
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < depth; k += Vec::width) {
        const int count = static_cast<int>(depth - k < Vec::width ? depth - k : Vec::width);
        const Vec numbers = load(x + r * stride + k, count, 0.0f);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words_.data() + r * room + k / 2),
                            (__m256i)_mm512_cvtneps_pbh(numbers.lanes));
      }
    }
    return {words_.data(), room};
  }

 private:
  std::vector<float> words_;
};
#else
static inline Vec add_product(Vec number, Vec weights, Vec sum) { return fma(number, weights, sum); }

class Operands {
 public:
  Operand of(const float* x, int64_t stride, int64_t, int64_t) { return {x, stride}; }
};
#endif

// What becomes of the sums of a tile before they are written.
struct Ending {
  const float* bias;  // [panel_width], or null
  bool continues;     // add what is written there
  bool relu;
};

// y = x[0 to rows) times one panel. Not inlined, and every loop over sums unrolled: so they stay in registers.
template <int rows>
__attribute__((noinline)) static void multiply_tile(const float* x, int64_t stride, const float* panel, int64_t words,
                                                    const Ending& ending, float* y, int64_t y_stride) {
  Lanes sums[rows][panel_vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v) {
      sums[r][v] = Vec(0.0f).lanes;
    }
  }
  constexpr int half = (rows + 1) / 2;
  const float* places[2] = {x, x + half * stride};  // from one, the distances take too many registers
  for (int64_t k = 0; k < words; ++k, panel += panel_width) {
    Lanes weights[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v) {
      weights[v] = load(panel + v * Vec::width).lanes;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec number(places[r / half][r % half * stride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; ++v) {
        sums[r][v] = add_product(number, Vec(weights[v]), Vec(sums[r][v])).lanes;
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; ++v) {
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
template <int rows>
static inline void multiply_rows(int count, const float* x, int64_t stride, const float* panel, int64_t words,
                                 const Ending& ending, float* y, int64_t y_stride) {
  if constexpr (rows > 1) {
    if (count < rows) {
      multiply_rows<rows - 1>(count, x, stride, panel, words, ending, y, y_stride);
      return;
    }
  }
  multiply_tile<rows>(x, stride, panel, words, ending, y, y_stride);
}

// Words of a panel that stay in the first-level cache while all rows of x pass by.
static constexpr int64_t slice_words = 256;

// y[0 to rows) = x W^T + b, or its positive part, for the columns of panels [first, last), the first of them at y[0]; y has
// room for all columns of the last panel.
static inline void multiply_panels(const Operand& x, int64_t rows, const PackedLinear& weights, int64_t first,
                                   int64_t last, float* y, int64_t y_stride, bool relu = false) {
  const int64_t all = weights.words();
  const float* end = weights.panels + last * all * panel_width;
  const bool fetches = rows > 4 * tile_rows;  // else slices pass so fast that the processor fetches ahead by itself
  for (int64_t p = first; p < last; ++p) {
    for (int64_t k = 0; k < all; k += slice_words) {
      const int64_t words = all - k < slice_words ? all - k : slice_words;
      const float* panel = weights.panels + (p * all + k) * panel_width;
      const bool last_slice = k + words == all;
      const Ending ending{last_slice && weights.bias ? weights.bias + p * panel_width : nullptr, k > 0,
                          last_slice && relu};
      const int64_t share = words * tile_rows / rows + 1;
      for (int64_t row = 0; row < rows; row += tile_rows) {
        // Each tile begins to load its share of the next slice, which would keep the first of the next tiles waiting.
        const float* ahead = panel + (words + row / tile_rows * share) * panel_width;
        for (int64_t i = 0; fetches && i < share && ahead < end; ++i, ahead += panel_width) {
          __builtin_prefetch(ahead);
        }
        const int count = static_cast<int>(rows - row < tile_rows ? rows - row : tile_rows);
        multiply_rows<tile_rows>(count, x.words + row * x.stride + k, x.stride, panel, words, ending,
                                 y + row * y_stride + (p - first) * panel_width, y_stride);
      }
    }
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
