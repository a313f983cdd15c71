// Adam on the CPU: the rule of math/adam.h over rows of memory.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "math/adam.h"
#include "math/random.h"

namespace pyseq {

// What there is beside 16-bit parameters.
enum class Extra : int { none = 0, master = 1, remainder = 2 };

struct AdamDtypes {
  DType param, grad, state;
  Extra extra;
};

// A row of the table of pyseq/ops/segments.py: eight int64. Null is what there is not.
struct AdamRow {
  void* param;
  void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;
  void* extra;
  int64_t numel;
  int64_t key;
};
static_assert(sizeof(AdamRow) == 8 * sizeof(int64_t), "a row is eight int64");

struct AdamOptions {
  bool zero_grads;
  uint64_t seed;  // of stochastic rounding
  uint32_t step;  // the number of the step being made
};

// Whether there is a kernel for these dtypes.
bool adam_takes(const AdamDtypes& dtypes);

// One step. Elements do not depend on each other, so neither does the result on `threads`.
void adam_update_rows(const AdamRow* rows, int64_t count, const AdamDtypes& dtypes, const AdamStep& step,
                      const AdamOptions& options, int threads);

// Only the zeroing of gradients, for a step that is skipped.
void zero_gradients(const AdamRow* rows, int64_t count, DType grad);

// The elements [begin, end) of a row; begin is a multiple of 64.
using RowUpdate = void (*)(const AdamRow& row, int64_t begin, int64_t end, const AdamStep& step,
                           const AdamOptions& options);

// Null where there is no kernel for these dtypes.
namespace portable {
RowUpdate row_update(const AdamDtypes& dtypes);
}
#if defined(__x86_64__)
namespace avx2 {
RowUpdate row_update(const AdamDtypes& dtypes);
}
namespace avx512 {
RowUpdate row_update(const AdamDtypes& dtypes);
}
#endif

}  // namespace pyseq
