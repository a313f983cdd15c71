// Attention of packed sequences: out = dropout(softmax(scale * Q K^T)) V for each segment and head (Vaswani et al. 2017).
//
// Scores are computed for a block of queries and a block of keys at a time, with the running maximum and sum of each
// query (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"); the backward pass computes them again
// from the log-sum-exp (Dao et al. 2022, "FlashAttention").
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "math/dropout.h"

namespace pyseq {

// [tokens, heads, dim]: strides in elements; the dims of a head lie without gaps.
template <class Data>
struct Heads {
  Data* data;
  int64_t token_stride;
  int64_t head_stride;
};

struct AttentionShape {
  DType dtype;
  int64_t segments;
  int64_t heads;
  int64_t dim;
  const int32_t* query_offsets;  // [segments + 1]: tokens of segment b are offsets[b] up to offsets[b + 1] - 1
  const int32_t* key_offsets;    // [segments + 1]
  int64_t longest_key;           // tokens of the longest segment of keys, or more
  bool causal;                   // query i of a segment sees its keys 0 to i
  float scale;
  Dropout dropout;  // limit -1: none. attention_tile says which number is for which weight
};

struct AttentionForward {
  Heads<const void> query, key, value;
  Heads<void> out;
  float* log_sums;  // [query tokens, heads]: log of the sum of exp of the scaled scores
};

struct AttentionBackward {
  Heads<const void> query, key, value, out, grad_out;
  const float* log_sums;
  Heads<void> grad_query, grad_key, grad_value;
};

// Random tile (128 halves) for 8 queries and 16 keys, query by query: those from `query` and `key` of a segment on, which
// are multiples of 8 and 16. first_token: of the segment's queries, so that no two segments share a tile.
static inline uint64_t attention_tile(const AttentionShape& shape, int64_t first_token, int64_t query, int64_t head,
                                      int64_t key) {
  const int64_t across = (shape.longest_key + 15) / 16;
  return static_cast<uint64_t>(((first_token + query / 8) * shape.heads + head) * across + key / 16);
}

// `threads` changes no bit of the results. The data must not overlap.
void attention_forward(const AttentionShape& shape, const AttentionForward& data, int threads);
void attention_backward(const AttentionShape& shape, const AttentionBackward& data, int threads);

// A block of scores is this large, so that it stays in the second-level cache with what makes it.
static constexpr int64_t attention_queries = 64, attention_keys = 256;

// fp32 numbers from one row of a matrix in scratch memory to the next: an odd number of cache lines, so that the lines of
// a column do not compete for the same few places of the cache.
static inline int64_t attention_stride(int64_t cols) { return ((cols + 15) / 16 | 1) * 16; }

// fp32 numbers that a task needs for segments of up to so many tokens.
int64_t attention_work(int64_t queries, int64_t keys, int64_t dim, bool backward);

// What an instruction set does with one head of one segment.
struct AttentionKernels {
  void (*forward)(const AttentionShape& shape, const AttentionForward& data, int64_t segment, int64_t head, float* work);
  void (*backward)(const AttentionShape& shape, const AttentionBackward& data, int64_t segment, int64_t head,
                   float* work);
};

namespace portable {
AttentionKernels attention_kernels(DType dtype);
}
namespace avx2 {
AttentionKernels attention_kernels(DType dtype);
}
namespace avx512 {
AttentionKernels attention_kernels(DType dtype);
}

}  // namespace pyseq
