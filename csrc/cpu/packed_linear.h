// The weights of a linear layer, y = x W^T + b, in the order in which a matrix product reads them.
#pragma once

#include <cstdint>

namespace pyseq {

// Columns of y that a product computes at a time: whole vectors of every instruction set.
static constexpr int64_t panel_width = 16;

struct PackedLinear {
  const float* panels;  // [panels, depth, panel_width]; columns past the last have weights of 0
  const float* bias;    // [panels * panel_width], or null for 0
  int64_t depth;        // numbers in a row of x
  int64_t columns;      // numbers in a row of y

  int64_t panel_count() const { return (columns + panel_width - 1) / panel_width; }
};

}  // namespace pyseq
