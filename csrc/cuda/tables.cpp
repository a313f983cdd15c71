#include "cuda/tables.h"

namespace pyseq {
namespace {

constexpr int64_t pack_bytes = 16;
constexpr int columns = 6;

int64_t element_bytes(int64_t dtype) { return dtype == 0 ? 4 : dtype == 3 ? 8 : 2; }

bool continues(const NormSegment& segment, int64_t address, int64_t dtype) {
  const int64_t bytes = segment.numel * element_bytes(dtype);
  return segment.dtype == dtype && bytes % pack_bytes == 0 &&
         reinterpret_cast<int64_t>(segment.data) + bytes == address;
}

// The elements before the first whose address is a multiple of 16 in every column that there is, or -1.
int32_t common_head(const int64_t* row, const int64_t* sizes) {
  for (int32_t head = 0; head < pack_bytes / 2; ++head) {
    bool fits = true;
    for (int c = 0; c < columns; ++c) {
      fits = fits && (row[c] == 0 || (row[c] + head * sizes[c]) % pack_bytes == 0);
    }
    if (fits) {
      return head;
    }
  }
  return -1;
}

}  // namespace

NormTable norm_segments(const int64_t* table, int64_t rows, NormSegment* segments) {
  NormTable out{0, 0};
  for (int64_t r = 0; r < rows; ++r, table += 3) {
    const int64_t address = table[0], numel = table[1], dtype = table[2];
    if (numel == 0) {
      continue;
    }
    if (out.count > 0 && continues(segments[out.count - 1], address, dtype)) {
      segments[out.count - 1].numel += numel;
    } else {
      segments[out.count++] = {reinterpret_cast<const void*>(address), numel, out.packs, static_cast<int32_t>(dtype),
                               address % pack_bytes == 0};
    }
    out.packs += (numel * element_bytes(dtype) + pack_bytes - 1) / pack_bytes;
  }
  return out;
}

int64_t adam_segments(const int64_t* table, int64_t rows, const int64_t* sizes, AdamSegment* segments) {
  int64_t chunks = 0;
  for (int64_t r = 0; r < rows; ++r, table += columns + 2) {
    AdamSegment& segment = segments[r];
    void** addresses[columns] = {&segment.param,      &segment.grad,           &segment.exp_avg,
                                 &segment.exp_avg_sq, &segment.max_exp_avg_sq, &segment.extra};
    for (int c = 0; c < columns; ++c) {
      *addresses[c] = reinterpret_cast<void*>(table[c]);
    }
    segment.numel = table[columns];
    segment.first = chunks;
    segment.key = static_cast<int32_t>(table[columns + 1]);
    segment.head = common_head(table, sizes);
    chunks += (segment.numel + adam_chunk - 1) / adam_chunk;
  }
  return chunks;
}

}  // namespace pyseq
