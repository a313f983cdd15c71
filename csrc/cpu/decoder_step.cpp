#include "cpu/decoder_step.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

void decoder_step(const Decoder& decoder, const DecoderCache& cache, float* x, int64_t rows, int threads) {
  const DecoderRows kernel = PYSEQ_OF_WEIGHTS(decoder.bf16, decoder_rows());
  const int64_t least = 4;  // a thread with fewer rows reads all weights for next to nothing
  const int parts = static_cast<int>(std::clamp<int64_t>(rows / least, 1, std::max(threads, 1)));
#pragma omp parallel for num_threads(team_for(parts, threads)) schedule(static)
  for (int part = 0; part < parts; ++part) {
    kernel(decoder, cache, x, rows * part / parts, rows * (part + 1) / parts);
  }
}

}  // namespace pyseq
