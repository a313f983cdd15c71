#include "cpu/linear_top_candidates.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

void linear_top_candidates(const Candidates& job, int threads) {
  const CandidateRows kernel = PYSEQ_OF_WEIGHTS(job.weights.bf16, candidate_rows());
  const int parts = useful_threads(static_cast<int>(std::min<int64_t>(threads, job.rows)), job.rows, job.weights.columns);
#pragma omp parallel for num_threads(team_for(parts, threads)) schedule(static)
  for (int part = 0; part < parts; ++part) {
    kernel(job, job.rows * part / parts, job.rows * (part + 1) / parts);
  }
}

}  // namespace pyseq
