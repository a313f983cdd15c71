// Runs every CUDA kernel on small and odd cases against plain loops of the host, which use the same rules of csrc/math.
// Without Python and torch, for compute-sanitizer:
//   compute-sanitizer --tool memcheck|racecheck|initcheck|synccheck build/core/cuda_driver
// Returns a code that is not 0 at the first difference.
#include <cuda_runtime.h>

#include <cstdio>

#include "cuda/tests/device_memory.h"

std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no CUDA device\n");
    return 2;
  }
  for (const Test& test : all_tests()) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    test.run();
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaGetLastError());
  }
  std::printf("%zu tests passed\n", all_tests().size());
  return 0;
}
