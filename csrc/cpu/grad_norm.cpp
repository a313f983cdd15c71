#include "cpu/grad_norm.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

namespace {

constexpr int64_t block = 1 << 14;  // elements

BlockSums sums_for_isa() {
  return PYSEQ_OF_ISA(block_sums());
}

int64_t blocks_of(const NormRow& row) { return (row.numel + block - 1) / block; }

}  // namespace

double sum_of_squares(const NormRow* rows, int64_t count, int threads) {
  const BlockSums sums = sums_for_isa();
  int64_t blocks = 0, elements = 0;
  for (int64_t r = 0; r < count; ++r) {
    blocks += blocks_of(rows[r]);
    elements += rows[r].numel;
  }
  std::vector<double> partial(static_cast<size_t>(blocks));
  const int64_t parts = useful_threads(threads, elements, 1);
#pragma omp parallel for num_threads(team_for(parts, threads)) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = blocks * part / parts, to = blocks * (part + 1) / parts;
    int64_t first = 0;  // the first block of the row, counted over all rows
    for (int64_t r = 0; r < count && first < to; ++r) {
      const NormRow& row = rows[r];
      const int64_t next = first + blocks_of(row);
      for (int64_t b = std::max(first, from); b < std::min(next, to); ++b) {
        const int64_t begin = (b - first) * block;
        const int64_t end = std::min(begin + block, row.numel);
        partial[static_cast<size_t>(b)] = sums.of[row.dtype](row.data, begin, end);
      }
      first = next;
    }
  }
  double total = 0.0;
  for (const double sum : partial) {
    total += sum;
  }
  return total;
}

}  // namespace pyseq
