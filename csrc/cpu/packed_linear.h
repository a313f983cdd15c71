// The weights of a linear layer, y = x W^T + b, in the order in which a matrix product reads them.
#pragma once

#include <cstdint>

namespace pyseq {

// Columns of y that a product computes at a time: whole vectors of every instruction set.
static constexpr int64_t panel_width = 16;

// Panels hold fp32, or pairs of bf16 as words of the same size: neighbours in a row of W, the first in the low half, 0 after
// the last. x is rounded to bf16 then, and sums are fp32.
struct PackedLinear {
  const float* panels;  // [panels, words, panel_width]; columns past the last have weights of 0
  const float* bias;    // [panels * panel_width], or null for 0
  int64_t depth;        // numbers in a row of x
  int64_t columns;      // numbers in a row of y
  bool bf16;            // only where has_bf16_products (cpu/isa.h)

  int64_t panel_count() const { return (columns + panel_width - 1) / panel_width; }
  int64_t words() const { return bf16 ? (depth + 1) / 2 : depth; }
};

}  // namespace pyseq
