// The matrix product in vectors; included once for each instruction set.
//
// After Goto and van de Geijn (2008): C is made of tiles whose sums stay in registers. Blocks of B and of A are copied so that
// what tiles read lies in the order it is read. One of B stays in the last cache, for all rows; one of A in the second, for
// all columns of that; what the tiles of a few columns read of B, for one chain of additions, in the first. Where rows are
// few, see Blocks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/gemm.h"
#include "cpu/gemm_pack.h"
#include "cpu/gemm_tiles.h"
#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

static constexpr int64_t longest_chain = 192;  // of fused multiply-adds: the longer, the less exact
static constexpr int64_t most_chains = 3;      // of a block
static constexpr int64_t most_depth = most_chains * longest_chain;
static constexpr int64_t most_rows = 96;   // of a block of A
static constexpr int64_t most_cols = 512;  // of a block of B

// Where all rows are one block, and A has no more chains than this, its copy is kept for all columns. Then blocks of B are
// narrower, for the second-level cache to hold one, the next, and the copy.
static constexpr int64_t most_chains_kept = 8;
static constexpr int64_t most_cols_beside_a = 128;

// Lines a multiple of a page apart share few sets of a cache: they drive each other out.
static bool share_sets(int64_t stride) { return stride % 1024 == 0; }

// A block of A and where it lies in C; packed, or as it is.
struct BlockOfA {
  int64_t begin, rows;
  const float* data;
  int64_t row, step, panel;  // how far apart rows, steps and tiles are

  BlockOfA(const StridedMatrix& a, int64_t first, int64_t count, int64_t k)
      : begin(first), rows(count), data(at(a, first, k)), row(a.row_stride), step(a.col_stride),
        panel(tile_rows * a.row_stride) {}

  // That a copy takes.
  static constexpr int64_t most_floats(int64_t depth) { return most_rows / tile_rows * panel_floats<tile_rows>(depth); }

  void copy(float* out, int64_t depth, int64_t readable) const {
    pack<tile_rows>({data, row, step, rows, readable}, depth, out);
  }

  void read_copy(const float* copied, int64_t depth) {
    data = copied;
    row = 1;
    step = tile_rows;
    panel = panel_floats<tile_rows>(depth);
  }
};

// Copying A pays where many columns read the copy, the sooner where it lies badly. Sums of rows are taken from the copy.
static bool copies_a(const Gemm& p) {
  const bool lies_badly = p.a.col_stride != 1 || (share_sets(p.a.row_stride) && p.depth > 64);
  return p.a_sums || p.cols > (lies_badly ? 2 : 8) * tile_cols;
}

// A side of a matrix in parts of about the same length, whole units each but for the last.
struct Parts {
  int64_t total, unit, count;

  Parts(int64_t total, int64_t unit, int64_t most)
      : total(total), unit(unit), count(std::max<int64_t>(1, ceil_div(total, most))) {}

  int64_t begin(int64_t part) const { return std::min(total, ceil_div(total, unit) * part / count * unit); }
  int64_t size(int64_t part) const { return begin(part + 1) - begin(part); }
};

// Neighbouring chains of the depth, of a block.
struct Chains {
  const Parts& all;
  int64_t first, last;

  int64_t begin() const { return all.begin(first); }
  int64_t depth() const { return all.begin(last) - begin(); }
};

// Of the vectors of some steps of a panel.
static Vec sum_of(const float* from, int64_t steps) {
  Vec parts[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  int64_t k = 0;
  for (; k + 4 <= steps; k += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      parts[i] = parts[i] + load(from + (k + i) * tile_rows);
    }
  }
  for (; k < steps; ++k) {
    parts[0] = parts[0] + load(from + k * tile_rows);
  }
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// The sums of the rows of a packed block, one chain after the other.
static void sum_rows(const BlockOfA& a, const Chains& chains, bool accumulate, float* sums) {
  constexpr int64_t at_once = 32;  // steps that are summed in fp32
  for (int64_t r = 0; r < a.rows; r += tile_rows) {
    for (int v = 0; v < vectors_of<tile_rows>; ++v) {
      const int64_t first = r + v * Vec::width, last = std::min(a.rows, std::min(r + tile_rows, first + Vec::width));
      for (int64_t chain = chains.first; chain < chains.last; ++chain) {
        const int64_t from = chains.all.begin(chain) - chains.begin(), depth = chains.all.size(chain);
        const float* steps = a.data + r / tile_rows * a.panel + from * tile_rows + v * Vec::width;
        double total[Vec::width] = {};
        float lanes[Vec::width];
        for (int64_t k = 0; k < depth; k += at_once) {
          store(lanes, sum_of(steps + k * tile_rows, std::min(at_once, depth - k)));
          for (int i = 0; i < Vec::width; ++i) {
            total[i] += lanes[i];
          }
        }
        for (int64_t row = first; row < last; ++row) {
          float* sum = sums + a.begin + row;
          *sum = static_cast<float>(total[row - first] + (accumulate || chain > 0 ? *sum : 0.0f));
        }
      }
    }
  }
}

// A block of B and where it lies in C; packed, or as it is.
struct BlockOfB {
  int64_t begin, cols;
  Lines lines;
  const float* copied;  // or null
};

// What tiles read of a block of B.
struct Panel {
  const float* data;
  int64_t step;
};

static Panel panel_of(const BlockOfB& b, int64_t col, int64_t depth, float* scratch) {
  if (b.copied) {
    return {b.copied + col * depth, tile_cols};
  }
  Lines lines = b.lines.after(col);
  if (are_neighbours<tile_cols>(lines)) {
    return {lines.from, lines.step};
  }
  lines.count = std::min<int64_t>(lines.count, tile_cols);
  pack<tile_cols>(lines, depth, scratch);
  return {scratch, tile_cols};
}

// C of a block of A and one of B.
static void multiply_blocks(const Gemm& p, const BlockOfA& a, const BlockOfB& b, const Chains& chains, Ahead ahead,
                            float* scratch) {
  const int64_t k = chains.begin(), depth = chains.depth();
  const int64_t tiles = ceil_div(b.cols, tile_cols) * ceil_div(a.rows, tile_rows);
  const int64_t lines_for_a_turn = ceil_div(ahead.lines(), tiles * std::max<int64_t>(depth / turn, 1));
  for (int64_t c = 0; c < b.cols; c += tile_cols) {
    const Panel panel = panel_of(b, c, depth, scratch);
    for (int64_t chain = chains.first; chain < chains.last; ++chain) {
      const int64_t from = chains.all.begin(chain) - k;
      const bool ends = chain == chains.all.count - 1;
      for (int64_t r = 0; r < a.rows; r += tile_rows) {
        multiply_some_rows<tile_rows>({chains.all.size(chain),
                                       a.data + r / tile_rows * a.panel + from * a.step,
                                       a.row,
                                       a.step,
                                       panel.data + from * panel.step,
                                       panel.step,
                                       p.c + (a.begin + r) * p.c_stride + b.begin + c,
                                       p.c_stride,
                                       static_cast<int>(std::min<int64_t>(tile_cols, b.cols - c)),
                                       p.accumulate || chain > 0,
                                       p.bias && ends ? p.bias + b.begin + c : nullptr,
                                       p.relu && ends,
                                       &ahead,
                                       lines_for_a_turn},
                                      static_cast<int>(std::min<int64_t>(tile_rows, a.rows - r)));
      }
    }
  }
}

// How a product is cut into blocks. A copy of B is read once for each block of rows. Where there is one such block, B is
// read as it lies if its columns are neighbours; else the copy is made for the columns of a tile and a chain at a time, and
// read where it is made, in the first-level cache. Chains begin with a line of a cache, if rows do.
struct Blocks {
  Parts rows, chains;
  bool few_rows, keeps_a;
  Parts cols;
  int64_t chains_of_block;

  explicit Blocks(const Gemm& p)
      : rows(p.rows, tile_rows, most_rows), chains(p.depth, line_floats, longest_chain), few_rows(rows.count == 1),
        keeps_a(few_rows && chains.count <= most_chains_kept),
        cols(p.cols, tile_cols, keeps_a ? most_cols_beside_a : most_cols), chains_of_block(few_rows ? 1 : most_chains) {}

  Chains chains_from(int64_t first) const { return {chains, first, std::min(chains.count, first + chains_of_block)}; }

  // What is read of B after a block of it.
  Ahead after(const Gemm& p, int64_t col_part, const Chains& now) const {
    const bool same_cols = now.last < chains.count;
    const int64_t part = same_cols ? col_part : col_part + 1;
    if (part == cols.count) {
      return {};
    }
    const Chains next = chains_from(same_cols ? now.last : 0);
    return {p.b, next.begin(), next.depth(), cols.begin(part), cols.size(part)};
  }
};

static void multiply(const Gemm& p, float* scratch) {
  const Blocks blocks(p);
  const bool copies = copies_a(p);
  float* copy_of_a = scratch + (blocks.few_rows ? longest_chain * tile_cols : most_depth * most_cols);
  for (int64_t i = 0; i < blocks.cols.count; ++i) {
    const int64_t col = blocks.cols.begin(i), cols = blocks.cols.size(i);
    for (int64_t first = 0; first < blocks.chains.count; first += blocks.chains_of_block) {
      const Chains chains = blocks.chains_from(first);
      const int64_t k = chains.begin(), depth = chains.depth();
      BlockOfB b = {col, cols, {at(p.b, k, col), p.b.col_stride, p.b.row_stride, cols, p.cols - col}, nullptr};
      if (!blocks.few_rows) {
        pack<tile_cols>(b.lines, depth, scratch);
        b.copied = scratch;
      }
      for (int64_t part = 0; part < blocks.rows.count; ++part) {
        const int64_t row = blocks.rows.begin(part);
        BlockOfA a(p.a, row, blocks.rows.size(part), k);
        if (copies) {
          float* copied = copy_of_a + (blocks.keeps_a ? first * BlockOfA::most_floats(longest_chain) : 0);
          if (i == 0 || !blocks.keeps_a) {
            a.copy(copied, depth, p.rows - row);
          }
          a.read_copy(copied, depth);
          if (p.a_sums && i == 0) {
            sum_rows(a, chains, p.accumulate, p.a_sums);
          }
        }
        const bool last = part + 1 == blocks.rows.count;
        multiply_blocks(p, a, b, chains, last ? blocks.after(p, i, chains) : Ahead(), scratch);
      }
    }
  }
}

GemmKernel gemm_kernel() {
  constexpr int64_t blocks = most_depth * most_cols + BlockOfA::most_floats(most_depth);
  constexpr int64_t few_rows = longest_chain * tile_cols + most_chains_kept * BlockOfA::most_floats(longest_chain);
  return {tile_rows, tile_cols, std::max(blocks, few_rows), multiply};
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
