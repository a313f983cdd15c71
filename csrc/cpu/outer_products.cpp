#include "cpu/outer_products.h"

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

namespace {

constexpr std::align_val_t line{64};

struct Free {
  void operator()(uint32_t* p) const { ::operator delete(p, line); }
};

void set_to_zero(const OuterProducts& p) {
  for (int64_t row = 0; row < p.a_cols; ++row) {
    std::fill_n(p.c + row * p.c_stride, p.b_cols, 0.0f);
  }
}

}  // namespace

void outer_products(const OuterProducts& problem, int threads) {
  if (!has_bf16_products()) {
    throw std::runtime_error("this processor, or the instruction set in use, has no products of bf16 numbers");
  }
#if defined(PYSEQ_HAVE_AVX512BF16)
  if (problem.a_cols <= 0 || problem.b_cols <= 0) {
    return;
  }
  if (problem.rows <= 0) {
    if (!problem.accumulate) {
      set_to_zero(problem);
    }
    return;
  }
  const OuterProductsKernel kernel = avx512bf16::outer_products_kernel(problem);
  const int64_t tiles = (problem.a_cols + kernel.tile_rows - 1) / kernel.tile_rows, pairs = (problem.rows + 1) / 2;
  const int64_t worth = problem.rows * problem.a_cols / 1024 * problem.b_cols / 2048;  // as gemm, of faster products
  const int64_t used = std::clamp<int64_t>(std::min(worth, tiles), 1, std::max(threads, 1));
  const std::unique_ptr<uint32_t, Free> packed(static_cast<uint32_t*>(
      ::operator new(static_cast<size_t>(kernel.packed_words) * sizeof(uint32_t), line)));
#pragma omp parallel num_threads(team_for(used, threads))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < used; ++i) {
      kernel.pack_pairs(problem, pairs * i / used, pairs * (i + 1) / used, packed.get());
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < used; ++i) {
      const int64_t first = tiles * i / used * kernel.tile_rows;
      const int64_t last = std::min(problem.a_cols, tiles * (i + 1) / used * kernel.tile_rows);
      OuterProducts part = problem;
      part.a += first;
      part.a_cols = last - first;
      part.c += first * part.c_stride;
      kernel.multiply(part, packed.get());
    }
  }
#endif
}

}  // namespace pyseq
