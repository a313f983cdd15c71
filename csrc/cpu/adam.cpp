#include "cpu/adam.h"

#include <algorithm>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

namespace {

constexpr int64_t chunk = 1 << 14;  // elements

RowUpdate update_for(const AdamDtypes& dtypes) {
  return PYSEQ_OF_ISA(row_update(dtypes));
}

int64_t total_elements(const AdamRow* rows, int64_t count) {
  int64_t total = 0;
  for (int64_t r = 0; r < count; ++r) {
    total += rows[r].numel;
  }
  return total;
}

// A border between two threads' elements, moved within its row to where a tile of random numbers begins.
int64_t aligned(int64_t element) { return element / random_tile_words * random_tile_words; }

}  // namespace

bool adam_takes(const AdamDtypes& dtypes) { return portable::row_update(dtypes) != nullptr; }

void adam_update_rows(const AdamRow* rows, int64_t count, const AdamDtypes& dtypes, const AdamStep& step,
                      const AdamOptions& options, int threads) {
  const RowUpdate update = update_for(dtypes);
  const int64_t total = total_elements(rows, count);
  const int64_t parts = useful_threads(threads, total, 1);
  // Each thread walks its part from the end: the gradients there are what the norm before has read last.
#pragma omp parallel for num_threads(team_for(parts, threads)) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = total / parts * part;
    const int64_t to = part + 1 == parts ? total : total / parts * (part + 1);
    int64_t last = total;  // where the row ends, counted over all rows
    for (int64_t r = count - 1; r >= 0 && last > from; --r) {
      const AdamRow& row = rows[r];
      const int64_t first = last - row.numel;
      const int64_t begin = from <= first ? 0 : aligned(from - first);
      int64_t end = to >= last ? row.numel : to <= first ? 0 : aligned(to - first);
      while (end > begin) {
        const int64_t middle = std::max(begin, (end - 1) / chunk * chunk);
        update(row, middle, end, step, options);
        end = middle;
      }
      last = first;
    }
  }
}

void zero_gradients(const AdamRow* rows, int64_t count, DType grad) {
  for (int64_t r = 0; r < count; ++r) {
    std::memset(rows[r].grad, 0, static_cast<size_t>(rows[r].numel) * size_of(grad));
  }
}

}  // namespace pyseq
