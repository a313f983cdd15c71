#include "cpu/linear_top_candidates.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

static CandidateRows rows_kernel(bool bf16) {
#if defined(PYSEQ_HAVE_AVX512BF16)
  if (bf16) {
    return avx512bf16::candidate_rows();
  }
#endif
  if (bf16) {
    throw std::runtime_error("there is no kernel for weights in bf16");
  }
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::avx512:
      return avx512::candidate_rows();
    case Isa::avx2:
      return avx2::candidate_rows();
    case Isa::portable:
      break;
  }
#endif
  return portable::candidate_rows();
}

void linear_top_candidates(const Candidates& job, int threads) {
  const CandidateRows kernel = rows_kernel(job.weights.bf16);
  const int parts = useful_threads(static_cast<int>(std::min<int64_t>(threads, job.rows)), job.rows, job.weights.columns);
#pragma omp parallel for num_threads(team_for(parts, threads)) schedule(static)
  for (int part = 0; part < parts; ++part) {
    kernel(job, job.rows * part / parts, job.rows * (part + 1) / parts);
  }
}

}  // namespace pyseq
