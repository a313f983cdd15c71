// Tiles of C, whose sums stay in registers: columns of A, one number of a pair of rows after the other to all lanes, times
// vectors of pairs of B.
#include "cpu/outer_products.h"

#include <algorithm>

#include "cpu/vec.h"

namespace pyseq {
namespace avx512bf16 {

static constexpr int tile_rows = 14;
static constexpr int tile_vectors = 2;
static constexpr int tile_cols = tile_vectors * 16;
static constexpr int packed_rows = 16;       // of a tile of A, whole vectors
static constexpr int64_t block_pairs = 128;  // a tile of A of so many pairs stays in the first-level cache

static int64_t block_count(int64_t pairs) { return (pairs + block_pairs - 1) / block_pairs; }
static int64_t panel_count(int64_t cols) { return (cols + tile_cols - 1) / tile_cols; }

// The first `count` of 16 numbers of a row (16 if there are more), in the low half of 32 bits each; 0 after them.
static inline __m512i widened(const bf16* row, int64_t count) {
  const __m256i halves = count >= 16 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row))
                                     : _mm256_maskz_loadu_epi16(first(static_cast<int>(std::max<int64_t>(count, 0))), row);
  return _mm512_cvtepu16_epi32(halves);
}

// Of `count` columns, the numbers of two rows as pairs. `other` is null after the last row.
static inline __m512i paired(const bf16* row, const bf16* other, int64_t count) {
  const __m512i low = widened(row, count);
  return other ? _mm512_or_si512(low, _mm512_slli_epi32(widened(other, count), 16)) : low;
}

static const bf16* row_or_null(const bf16* matrix, int64_t stride, int64_t row, int64_t rows) {
  return row < rows ? matrix + row * stride : nullptr;
}

// Packed B: block after block of pairs; in each, panel after panel of columns; in each, pair after pair.
static void pack_pairs(const OuterProducts& p, int64_t begin, int64_t end, uint32_t* packed) {
  const int64_t pairs = (p.rows + 1) / 2, panels = panel_count(p.b_cols);
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t block = pair / block_pairs;
    const int64_t in_block = std::min(block_pairs, pairs - block * block_pairs);
    uint32_t* out = packed + block * block_pairs * panels * tile_cols + (pair - block * block_pairs) * tile_cols;
    const bf16* row = p.b + 2 * pair * p.b_stride;
    const bf16* other = row_or_null(p.b, p.b_stride, 2 * pair + 1, p.rows);
    for (int64_t col = 0; col < panels * tile_cols; col += 16) {
      uint32_t* place = out + col / tile_cols * in_block * tile_cols + col % tile_cols;
      _mm512_storeu_si512(place, paired(row + col, other ? other + col : nullptr, p.b_cols - col));
    }
  }
}

// A tile of A, [pairs][packed_rows], from column `col` on. The lines that the tiles after this one read are asked for.
static void pack_tile(const OuterProducts& p, int64_t col, int64_t first_pair, int64_t pairs, uint32_t* packed) {
  constexpr int64_t line = 32;  // numbers
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t row = 2 * (first_pair + i);
    const bf16* numbers = p.a + row * p.a_stride + col;
    const bf16* other = row_or_null(p.a, p.a_stride, row + 1, p.rows);
    __builtin_prefetch(numbers + line);
    __builtin_prefetch(numbers + p.a_stride + line);
    _mm512_storeu_si512(packed + i * packed_rows, paired(numbers, other ? other + col : nullptr, p.a_cols - col));
  }
}

struct Tile {
  const uint32_t* a;  // [pairs][packed_rows]
  const uint32_t* b;  // [pairs][tile_cols]
  int64_t pairs;
  float* c;
  int64_t c_stride;
  int64_t cols;  // up to tile_cols
  bool accumulate;
};

// Not inlined, and every loop over sums unrolled: so they stay in registers.
template <int rows>
__attribute__((noinline)) static void multiply_tile(const Tile& t) {
  __m512 sums[rows][tile_vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    __builtin_prefetch(t.c + r * t.c_stride, 1);
    __builtin_prefetch(t.c + r * t.c_stride + 16, 1);
#pragma GCC unroll 2
    for (int v = 0; v < tile_vectors; ++v) {
      sums[r][v] = _mm512_setzero_ps();
    }
  }
  const uint32_t *a = t.a, *b = t.b;
  for (int64_t i = 0; i < t.pairs; ++i, a += packed_rows, b += tile_cols) {
    __m512i vectors[tile_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < tile_vectors; ++v) {
      vectors[v] = _mm512_loadu_si512(b + v * 16);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const __m512i number = _mm512_set1_epi32(static_cast<int>(a[r]));
#pragma GCC unroll 2
      for (int v = 0; v < tile_vectors; ++v) {
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)number, (__m512bh)vectors[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < tile_vectors; ++v) {
      const int64_t left = t.cols - v * 16;
      const __mmask16 there = first(static_cast<int>(std::clamp<int64_t>(left, 0, 16)));
      float* place = t.c + r * t.c_stride + v * 16;
      const __m512 before = t.accumulate ? _mm512_maskz_loadu_ps(there, place) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(place, there, _mm512_add_ps(before, sums[r][v]));
    }
  }
}

// multiply_tile for a number of rows that is known at run time, at most `rows`.
template <int rows>
static void multiply_rows(int64_t count, const Tile& tile) {
  if constexpr (rows > 1) {
    if (count < rows) {
      multiply_rows<rows - 1>(count, tile);
      return;
    }
  }
  multiply_tile<rows>(tile);
}

static void multiply(const OuterProducts& p, const uint32_t* packed) {
  alignas(64) uint32_t tile_of_a[block_pairs * packed_rows];
  const int64_t pairs = (p.rows + 1) / 2, panels = panel_count(p.b_cols);
  for (int64_t col = 0; col < p.a_cols; col += tile_rows) {
    for (int64_t block = 0; block < block_count(pairs); ++block) {
      const int64_t begin = block * block_pairs, in_block = std::min(block_pairs, pairs - begin);
      pack_tile(p, col, begin, in_block, tile_of_a);
      for (int64_t panel = 0; panel < panels; ++panel) {
        multiply_rows<tile_rows>(std::min<int64_t>(tile_rows, p.a_cols - col),
                                 {tile_of_a, packed + (begin * panels + panel * in_block) * tile_cols, in_block,
                                  p.c + col * p.c_stride + panel * tile_cols, p.c_stride,
                                  p.b_cols - panel * tile_cols, p.accumulate || block > 0});
      }
    }
  }
}

OuterProductsKernel outer_products_kernel(const OuterProducts& p) {
  return {tile_rows, (p.rows + 1) / 2 * panel_count(p.b_cols) * tile_cols, &pack_pairs, &multiply};
}

}  // namespace avx512bf16
}  // namespace pyseq
