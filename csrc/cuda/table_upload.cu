#include "cuda/table_upload.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace pyseq {
namespace {

#if CUDART_VERSION >= 12010
constexpr int part_words = 4000;  // of 8 bytes: arguments may take 32,764 bytes
#else
constexpr int part_words = 500;  // 4,096
#endif
constexpr int threads = 256;

struct Part {
  int64_t words[part_words];
};

__global__ void write_part(const __grid_constant__ Part part, int64_t* out, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
    out[i] = part.words[i];
  }
}

}  // namespace

cudaError_t upload_table(void* device, const void* host, size_t bytes, cudaStream_t stream) {
  int64_t* out = static_cast<int64_t*>(device);
  const int64_t* in = static_cast<const int64_t*>(host);
  cudaError_t error = cudaSuccess;
  for (size_t left = bytes / sizeof(int64_t); left > 0 && error == cudaSuccess;) {
    const size_t count = std::min<size_t>(left, part_words);
    Part part;
    std::memcpy(part.words, in, count * sizeof(int64_t));
    write_part<<<1, threads, 0, stream>>>(part, out, static_cast<int>(count));
    error = cudaGetLastError();
    in += count;
    out += count;
    left -= count;
  }
  return error;
}

}  // namespace pyseq
