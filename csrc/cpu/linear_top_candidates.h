// The largest logits of each row of x W^T + b and the logarithm of the sum of their exponentials, without all logits in
// memory.
#pragma once

#include <cstdint>

#include "cpu/packed_linear.h"

namespace pyseq {

struct Candidates {
  const float* x;  // [rows, depth]
  int64_t rows;
  PackedLinear weights;
  int64_t count;                  // k, at most columns
  const int64_t* adjusted;        // [adjustments] columns, ascending, and what is added to their logits
  const float* adjustment;        // after they were counted in the sum
  int64_t adjustments;
  int64_t filler;                 // the column of a value that is -inf because nothing else is left
  float* values;                  // [rows, k], descending; among equals the lower column first. nan counts as -inf
  int64_t* columns;               // [rows, k]
  float* log_sum_exp;             // [rows]
};

// `threads` changes no bit of the results.
void linear_top_candidates(const Candidates& job, int threads);

// What an instruction set does with rows [begin, end).
using CandidateRows = void (*)(const Candidates& job, int64_t begin, int64_t end);

namespace portable {
CandidateRows candidate_rows();
}
namespace avx2 {
CandidateRows candidate_rows();
}
namespace avx512 {
CandidateRows candidate_rows();
}
namespace avx512bf16 {
CandidateRows candidate_rows();
}

}  // namespace pyseq
