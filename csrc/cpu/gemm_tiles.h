// The matrix product in vectors; included once for each instruction set.
//
// After Goto and van de Geijn (2008): C is made of tiles whose sums stay in registers. Blocks of B and of A are copied so that
// what tiles read lies in the order it is read. One of B stays in the last cache, for all rows; one of A in the second, for
// all columns of that; what the tiles of a few columns read of B, for one chain of additions, in the first.
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

static constexpr int64_t longest_chain = 192;  // of fused multiply-adds: the longer, the less exact
static constexpr int64_t most_depth = 3 * longest_chain;  // of a block
static constexpr int64_t most_rows = 96;                  // of a block of A
static constexpr int64_t most_cols = 512;                 // of a block of B

struct Tile {
  int64_t depth;
  const float* a;  // element (r, k) is a[r * a_row + k * a_step]
  int64_t a_row, a_step;
  const float* b;  // [depth][tile_cols], packed
  float* c;
  int64_t c_stride;
  int cols;  // of C to write
  bool add;  // to what C holds
  const float* bias;
  bool relu;
};

// Not inlined: among other code GCC leaves sums in memory.
template <int Rows, int Vectors>
__attribute__((noinline)) static void multiply_tile(const Tile& t) {
  const float* a[Rows];
  Vec sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    a[r] = t.a + r * t.a_row;
    __builtin_prefetch(t.c + r * t.c_stride, 1);
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      sums[r][v] = Vec(0.0f);
    }
  }
  const float* b = t.b;
  int64_t place = 0;
#pragma GCC unroll 8
  for (int64_t k = 0; k < t.depth; ++k) {
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
    b += tile_cols;
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

// Lines of a matrix that are copied to out[step * Width + line]: columns of B, or rows of A.
struct Lines {
  const float* from;
  int64_t line, step;  // how far apart lines and steps are in memory
  int64_t count;       // lines to copy
  int64_t readable;    // lines that are there

  Lines after(int64_t lines) const { return {from + lines * line, line, step, count - lines, readable - lines}; }
};

template <int Width>
static constexpr int vectors_of = (Width + Vec::width - 1) / Vec::width;

// Lines are copied in panels of Width. Whole vectors are stored: what one has too much is overwritten by the next step,
// and the last one of a panel has room for it.
template <int Width>
static int64_t panel_floats(int64_t depth) {
  return depth * Width + vectors_of<Width> * Vec::width - Width;
}

// Whether whole vectors along the lines can be read.
template <int Width>
static bool are_neighbours(const Lines& lines) {
  return lines.line == 1 && lines.readable >= vectors_of<Width> * Vec::width;
}

template <int Width>
static void pack_neighbours(const Lines& lines, int64_t begin, int64_t end, float* out) {
  for (int64_t k = begin; k < end; ++k) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors_of<Width>; ++v) {
      store(out + k * Width + v * Vec::width, load(lines.from + k * lines.step + v * Vec::width));
    }
  }
}

// Lines whose steps are neighbours, in squares; returns how many steps these make.
template <int Width>
static int64_t pack_squares(const Lines& lines, int64_t depth, float* out) {
  int64_t k = 0;
  for (; k + Vec::width <= depth; k += Vec::width) {
#pragma GCC unroll 2
    for (int v = vectors_of<Width> - 1; v >= 0; --v) {  // the last first: its excess is where the first begins
      Vec square[Vec::width];
#pragma GCC unroll 16
      for (int i = 0; i < Vec::width; ++i) {
        const float* p = lines.from + std::min(v * Vec::width + i, Width - 1) * lines.line + k;
        __builtin_prefetch(p + Width * lines.line);
        square[i] = load(p);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < Vec::width; ++i) {
        store(out + (k + i) * Width + v * Vec::width, square[i]);
      }
    }
  }
  return k;
}

// At most Width lines; those that are missing become 0.
template <int Width>
static void pack_panel(const Lines& lines, int64_t depth, float* out) {
  int64_t k = lines.step == 1 && lines.count >= Width ? pack_squares<Width>(lines, depth, out) : 0;
  for (; k < depth; ++k) {
    for (int64_t i = 0; i < Width; ++i) {
      out[k * Width + i] = i < lines.count ? lines.from[i * lines.line + k * lines.step] : 0.0f;
    }
  }
}

// All lines, one panel after the other.
template <int Width>
static void pack(const Lines& lines, int64_t depth, float* out) {
  constexpr int64_t steps = 8;  // few enough that what is read of them stays in the first-level cache for all panels
  if (are_neighbours<Width>(lines)) {
    for (int64_t k = 0; k < depth; k += steps) {
      const int64_t end = std::min(depth, k + steps);
      for (int64_t next = end; next < std::min(depth, end + steps); ++next) {
        for (int64_t l = 0; l < lines.count; l += 16) {
          __builtin_prefetch(lines.from + next * lines.step + l);
        }
      }
      for (int64_t l = 0; l < lines.count && are_neighbours<Width>(lines.after(l)); l += Width) {
        pack_neighbours<Width>(lines.after(l), k, end, out + l / Width * panel_floats<Width>(depth));
      }
    }
  }
  for (int64_t l = 0; l < lines.count; l += Width) {
    if (!are_neighbours<Width>(lines.after(l))) {
      pack_panel<Width>(lines.after(l), depth, out + l / Width * panel_floats<Width>(depth));
    }
  }
}

static const float* at(const StridedMatrix& m, int64_t row, int64_t col) {
  return m.data + row * m.row_stride + col * m.col_stride;
}

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

// The sums of the rows of a packed block.
static void sum_rows(const BlockOfA& a, int64_t depth, bool add, float* sums) {
  constexpr int64_t chain = 32;  // steps that are summed in fp32
  for (int64_t r = 0; r < a.rows; r += tile_rows) {
    for (int v = 0; v < vectors_of<tile_rows>; ++v) {
      const float* from = a.data + r / tile_rows * a.panel + v * Vec::width;
      double total[Vec::width] = {};
      float lanes[Vec::width];
      for (int64_t k = 0; k < depth; k += chain) {
        store(lanes, sum_of(from + k * tile_rows, std::min(chain, depth - k)));
        for (int i = 0; i < Vec::width; ++i) {
          total[i] += lanes[i];
        }
      }
      const int64_t first = r + v * Vec::width, last = std::min(a.rows, std::min(r + tile_rows, first + Vec::width));
      for (int64_t row = first; row < last; ++row) {
        float* sum = sums + a.begin + row;
        *sum = static_cast<float>(total[row - first] + (add ? *sum : 0.0f));
      }
    }
  }
}

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
  static constexpr int64_t line_floats = 16;  // of a cache
  const float* from = nullptr;  // pieces of `floats` neighbours, `stride` apart
  int64_t stride = 0, floats = 0, left = 0;
  int64_t place = 0;  // in a piece
};

// C of a block of A and one of B, packed: [depth from k on x cols from col on].
static void multiply_blocks(const Gemm& p, const BlockOfA& a, const float* b, int64_t col, int64_t cols, int64_t k,
                            int64_t depth, Ahead ahead) {
  const Parts chains(depth, 8, longest_chain);  // eight steps are one turn of the loop in multiply_tile
  const bool ends = k + depth == p.depth;
  const int64_t tiles = ceil_div(cols, tile_cols) * chains.count * ceil_div(a.rows, tile_rows);
  const int64_t lines_for_a_tile = ceil_div(ahead.lines(), tiles);
  for (int64_t c = 0; c < cols; c += tile_cols) {
    for (int64_t chain = 0; chain < chains.count; ++chain) {
      const int64_t from = chains.begin(chain);
      const bool last = ends && chain == chains.count - 1;
      for (int64_t r = 0; r < a.rows; r += tile_rows) {
        ahead.fetch(lines_for_a_tile);
        multiply_some_rows<tile_rows>({chains.size(chain),
                                       a.data + r / tile_rows * a.panel + from * a.step,
                                       a.row,
                                       a.step,
                                       b + c * depth + from * tile_cols,
                                       p.c + (a.begin + r) * p.c_stride + col + c,
                                       p.c_stride,
                                       static_cast<int>(std::min<int64_t>(tile_cols, cols - c)),
                                       p.accumulate || k > 0 || chain > 0,
                                       p.bias && last ? p.bias + col + c : nullptr,
                                       p.relu && last},
                                      static_cast<int>(std::min<int64_t>(tile_rows, a.rows - r)));
      }
    }
  }
}

static void multiply(const Gemm& p, float* scratch) {
  float* copy_of_b = scratch;
  float* copy_of_a = scratch + most_depth * most_cols;
  const Parts rows(p.rows, tile_rows, most_rows), cols(p.cols, tile_cols, most_cols), steps(p.depth, 1, most_depth);
  const bool copies = copies_a(p), once = rows.count * steps.count == 1;
  for (int64_t i = 0; i < cols.count; ++i) {
    const int64_t col = cols.begin(i);
    for (int64_t j = 0; j < steps.count; ++j) {
      const int64_t k = steps.begin(j), depth = steps.size(j);
      pack<tile_cols>({at(p.b, k, col), p.b.col_stride, p.b.row_stride, cols.size(i), p.cols - col}, depth, copy_of_b);
      Ahead next;
      if (j + 1 < steps.count) {
        next = {p.b, steps.begin(j + 1), steps.size(j + 1), col, cols.size(i)};
      } else if (i + 1 < cols.count) {
        next = {p.b, 0, steps.size(0), cols.begin(i + 1), cols.size(i + 1)};
      }
      for (int64_t part = 0; part < rows.count; ++part) {
        const int64_t row = rows.begin(part);
        BlockOfA a(p.a, row, rows.size(part), k);
        if (copies) {
          if (i == 0 || !once) {
            a.copy(copy_of_a, depth, p.rows - row);
          }
          a.read_copy(copy_of_a, depth);
          if (p.a_sums && i == 0) {
            sum_rows(a, depth, p.accumulate || k > 0, p.a_sums);
          }
        }
        const bool last = part + 1 == rows.count;
        multiply_blocks(p, a, copy_of_b, col, cols.size(i), k, depth, last ? next : Ahead());
      }
    }
  }
}

GemmKernel gemm_kernel() {
  // Panels of A may be a vector longer than their rows.
  return {tile_rows, tile_cols, most_depth * (most_cols + most_rows) + 8 * most_rows, multiply};
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
