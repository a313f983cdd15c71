// The matrix product C = A B in fp32, with what linear layers add to it.
//
// Each element of C is a sum in one fixed order, whatever the number of threads and wherever the element lies: products
// of neighbouring steps of the depth are summed by fused multiply-adds in blocks, and the blocks are added in turn. Where C
// is small and the depth long, that is done for pieces of the depth, whose sums are then added in turn.
#pragma once

#include <cstdint>

namespace pyseq {

// Element (i, j) is data[i * row_stride + j * col_stride].
struct StridedMatrix {
  const float* data;
  int64_t row_stride;
  int64_t col_stride;
};

// C = A B, or C += A B; then + bias, then the larger of that and 0.
struct Gemm {
  int64_t rows, cols, depth;
  StridedMatrix a;  // [rows x depth]
  StridedMatrix b;  // [depth x cols]
  float* c;         // [rows x cols], without gaps within a row
  int64_t c_stride;
  bool accumulate;    // C +=
  const float* bias;  // [cols], or null
  bool relu;
  float* a_sums = nullptr;  // [rows], or null: the sums of the rows of A (+= as C), which come by the way
};

void gemm(const Gemm& problem, int threads);

// Static: an inline function might be taken from the object of an instruction set that this processor lacks.
[[maybe_unused]] static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What an instruction set does with a part of the rows and columns, on one thread.
struct GemmKernel {
  int64_t tile_rows, tile_cols;  // parts begin at multiples of these
  int64_t scratch;               // floats, on a 64-byte boundary
  void (*multiply)(const Gemm& part, float* scratch);
};

namespace portable {
GemmKernel gemm_kernel();
}
namespace avx2 {
GemmKernel gemm_kernel();
}
namespace avx512 {
GemmKernel gemm_kernel();
}

}  // namespace pyseq
