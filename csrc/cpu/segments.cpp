#include "cpu/segments.h"

namespace pyseq {

namespace {

bool follows(const void* first, const void* second, int64_t bytes) {
  if (first == nullptr || second == nullptr) {
    return first == second;
  }
  return reinterpret_cast<uintptr_t>(first) + static_cast<uintptr_t>(bytes) == reinterpret_cast<uintptr_t>(second);
}

bool follows(const AdamRow& first, const AdamRow& second, const RowElementSizes& sizes) {
  const int64_t n = first.numel;
  return follows(first.param, second.param, n * sizes.of[0]) && follows(first.grad, second.grad, n * sizes.of[1]) &&
         follows(first.exp_avg, second.exp_avg, n * sizes.of[2]) &&
         follows(first.exp_avg_sq, second.exp_avg_sq, n * sizes.of[3]) &&
         follows(first.max_exp_avg_sq, second.max_exp_avg_sq, n * sizes.of[4]) &&
         follows(first.extra, second.extra, n * sizes.of[5]);
}

}  // namespace

int64_t merge_rows(AdamRow* rows, int64_t count, const RowElementSizes& sizes) {
  if (count == 0) {
    return 0;
  }
  int64_t last = 0;
  for (int64_t r = 1; r < count; ++r) {
    if (follows(rows[last], rows[r], sizes)) {
      rows[last].numel += rows[r].numel;
    } else {
      rows[++last] = rows[r];
    }
  }
  return last + 1;
}

}  // namespace pyseq
