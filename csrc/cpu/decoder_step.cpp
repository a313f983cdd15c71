#include "cpu/decoder_step.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

static DecoderRows rows_kernel(bool bf16) {
#if defined(PYSEQ_HAVE_AVX512BF16)
  if (bf16) {
    return avx512bf16::decoder_rows();
  }
#endif
  if (bf16) {
    throw std::runtime_error("there is no kernel for weights in bf16");
  }
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::avx512:
      return avx512::decoder_rows();
    case Isa::avx2:
      return avx2::decoder_rows();
    case Isa::portable:
      break;
  }
#endif
  return portable::decoder_rows();
}

void decoder_step(const Decoder& decoder, const DecoderCache& cache, float* x, int64_t rows, int threads) {
  const DecoderRows kernel = rows_kernel(decoder.bf16);
  const int64_t least = 4;  // a thread with fewer rows reads all weights for next to nothing
  const int parts = static_cast<int>(std::clamp<int64_t>(rows / least, 1, std::max(threads, 1)));
#pragma omp parallel for num_threads(team_for(parts, threads)) schedule(static)
  for (int part = 0; part < parts; ++part) {
    kernel(decoder, cache, x, rows * part / parts, rows * (part + 1) / parts);
  }
}

}  // namespace pyseq
