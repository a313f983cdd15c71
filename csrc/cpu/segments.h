// Tables of where tensors lie, for kernels on any device. On the host alone.
#pragma once

#include <cstdint>

#include "cpu/adam.h"

namespace pyseq {

// Bytes an element of each of the six address columns of an AdamRow.
struct RowElementSizes {
  int64_t of[6];
};

// Join rows that follow each other in memory in every column, in place; a joined row keeps the key of its first. Columns
// that are absent (null) join with each other. Returns the number of rows left.
int64_t merge_rows(AdamRow* rows, int64_t count, const RowElementSizes& sizes);

}  // namespace pyseq
