#include "cpu/gemm.h"

#include <algorithm>
#include <memory>
#include <new>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

namespace {

GemmKernel kernel_in_use() {
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::avx512:
      return avx512::gemm_kernel();
    case Isa::avx2:
      return avx2::gemm_kernel();
    case Isa::portable:
      break;
  }
#endif
  return portable::gemm_kernel();
}

constexpr std::align_val_t line{64};

struct Free {
  void operator()(float* p) const { ::operator delete(p, line); }
};

// Kept by each thread from call to call: less than half a mebibyte.
float* scratch_of(int64_t floats) {
  thread_local std::unique_ptr<float, Free> kept;
  thread_local int64_t size = 0;
  if (size < floats) {
    kept.reset(static_cast<float*>(::operator new(static_cast<size_t>(floats) * sizeof(float), line)));
    size = floats;
  }
  return kept.get();
}

// How threads share out the tiles: `down` parts of the rows times `across` parts of the columns.
struct Grid {
  int64_t down, across;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Grid grid_for(int64_t rows, int64_t cols, int64_t threads) {
  Grid best = {1, 1};
  int64_t least = INT64_MAX;
  for (int64_t down = 1; down <= threads; ++down) {
    const int64_t across = threads / down;
    const int64_t high = ceil_div(rows, down), wide = ceil_div(cols, across);
    const int64_t work = 8 * high * wide + high + wide;  // tiles, and what is packed for them
    if (work < least) {
      least = work;
      best = {down, across};
    }
  }
  return best;
}

}  // namespace

void gemm(const Gemm& problem, int threads) {
  if (problem.rows <= 0 || problem.cols <= 0) {
    return;
  }
  const GemmKernel kernel = kernel_in_use();
  const int64_t rows = ceil_div(problem.rows, kernel.tile_rows), cols = ceil_div(problem.cols, kernel.tile_cols);
  const int64_t worth = problem.rows * problem.cols / 1024 * problem.depth / 1024;  // threads: 2 million operations each
  const Grid grid = grid_for(rows, cols, std::clamp<int64_t>(worth, 1, std::max(threads, 1)));
  const int64_t parts = grid.down * grid.across;
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static)
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t down = i / grid.across, across = i % grid.across;
    const int64_t row = rows * down / grid.down * kernel.tile_rows;
    const int64_t col = cols * across / grid.across * kernel.tile_cols;
    const int64_t row_end = std::min(problem.rows, rows * (down + 1) / grid.down * kernel.tile_rows);
    const int64_t col_end = std::min(problem.cols, cols * (across + 1) / grid.across * kernel.tile_cols);
    if (row >= row_end || col >= col_end) {
      continue;
    }
    Gemm part = problem;
    part.rows = row_end - row;
    part.cols = col_end - col;
    part.a.data += row * part.a.row_stride;
    part.b.data += col * part.b.col_stride;
    part.c += row * part.c_stride + col;
    part.bias = part.bias ? part.bias + col : nullptr;
    part.a_sums = part.a_sums && col == 0 ? part.a_sums + row : nullptr;
    kernel.multiply(part, scratch_of(kernel.scratch));
  }
}

}  // namespace pyseq
