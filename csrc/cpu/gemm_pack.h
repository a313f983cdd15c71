// Copies of parts of a matrix in the order that tiles read them; included once for each instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

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
static constexpr int64_t panel_floats(int64_t depth) {
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
  const int64_t last = std::min<int64_t>(Width, lines.count) - 1;
  int64_t k = 0;
  for (; k + Vec::width <= depth; k += Vec::width) {
#pragma GCC unroll 2
    for (int v = vectors_of<Width> - 1; v >= 0; --v) {  // the last first: its excess is where the first begins
      Vec square[Vec::width];
#pragma GCC unroll 16
      for (int i = 0; i < Vec::width; ++i) {
        const float* p = lines.from + std::min<int64_t>(v * Vec::width + i, last) * lines.line + k;
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

// At most Width lines; what stands in the place of those that are missing is of no meaning.
template <int Width>
static void pack_panel(const Lines& lines, int64_t depth, float* out) {
  int64_t k = lines.step == 1 ? pack_squares<Width>(lines, depth, out) : 0;
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

}  // namespace PYSEQ_ISA
}  // namespace pyseq
