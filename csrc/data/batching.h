// Batches of samples under a limit of tokens, padded or real, and of sentences.
#pragma once

#include <cstdint>

namespace pyseq {

struct BatchLimits {
  int64_t max_tokens;     // of a batch, counted as `packed` says; 0 or less: no limit
  int64_t max_sentences;  // 0 or less: no limit
  int64_t multiple;       // a batch has fewer sentences than this or a multiple of it, at least 1
  bool packed = false;    // count the tokens that there are, not sentences x longest sentence
};

struct Batches {
  int64_t count;     // batches written
  int64_t too_long;  // position of the first sample that no batch can hold, -1 if there is none
};

// Walks `num_tokens[n]` in order and writes the end offset of each batch to `ends` (room for n).
// The last end is n; where a sample is too long the walk stops there.
Batches batch_by_size(const int64_t* num_tokens, int64_t n, const BatchLimits& limits, int64_t* ends);

}  // namespace pyseq
