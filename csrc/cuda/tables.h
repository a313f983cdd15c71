// Tables of memory for kernels that run over many tensors in one launch. Host code without CUDA.
//
// The items of a table (packs of 16 bytes, chunks of elements) are numbered through all its rows; a row says which is its
// first. Rows that follow each other in memory are merged, without changing which numbers their items have.
#pragma once

#include <cstdint>

namespace pyseq {

// For the norm: items are packs. A tensor begins with a new pack, so what is in a pack, and with it the order in which
// squares are added, depends on sizes and dtypes alone and not on where tensors lie.
struct NormSegment {
  const void* data;
  int64_t numel;
  int64_t first;   // pack
  int32_t dtype;   // 0 fp32, 1 bf16, 2 fp16, 3 fp64
  int32_t vector;  // whether `data` is a multiple of 16
};
static_assert(sizeof(NormSegment) == 4 * sizeof(int64_t), "pyseq/ops/grad_norm.py allocates four int64 a row");

struct NormTable {
  int count;      // of segments
  int64_t packs;  // of all of them
};

// `table` has `rows` rows of {address, elements, dtype}. Writes at most `rows` segments.
NormTable norm_segments(const int64_t* table, int64_t rows, NormSegment* segments);

// For Adam: items are chunks.
constexpr int adam_chunk = 2048;  // elements

struct AdamSegment {
  void* param;
  void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;  // null where there is none, as is extra
  void* extra;           // fp32 masters or int16 remainders
  int64_t numel;
  int64_t first;  // chunk
  int32_t key;    // of the random numbers
  int32_t head;   // elements before the first whose address is a multiple of 16 in every column; -1 if there is none
};
static_assert(sizeof(AdamSegment) == 9 * sizeof(int64_t), "pyseq/ops/adam.py allocates nine int64 a row");

// `table` has rows of {param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, extra, elements, key}, without empty tensors,
// and `sizes` the bytes of an element of each of the first six columns. Writes `rows` segments, returns their chunks.
int64_t adam_segments(const int64_t* table, int64_t rows, const int64_t* sizes, AdamSegment* segments);

}  // namespace pyseq
