#include "cpu/gemm.h"

#include <algorithm>
#include <memory>
#include <new>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

namespace {

GemmKernel kernel_in_use() {
  return PYSEQ_OF_ISA(gemm_kernel());
}

constexpr std::align_val_t line{64};

struct Free {
  void operator()(float* p) const { ::operator delete(p, line); }
};

// Kept by each thread from call to call: a mebibyte and a half.
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

// What one thread computes: a part of the rows and columns, over the whole depth of `problem`.
Gemm part_of(const Gemm& problem, const GemmKernel& kernel, const Grid& grid, int64_t i) {
  const int64_t rows = ceil_div(problem.rows, kernel.tile_rows), cols = ceil_div(problem.cols, kernel.tile_cols);
  const int64_t down = i / grid.across, across = i % grid.across;
  const int64_t row = rows * down / grid.down * kernel.tile_rows;
  const int64_t col = cols * across / grid.across * kernel.tile_cols;
  Gemm part = problem;
  part.rows = std::min(problem.rows, rows * (down + 1) / grid.down * kernel.tile_rows) - row;
  part.cols = std::min(problem.cols, cols * (across + 1) / grid.across * kernel.tile_cols) - col;
  part.a.data += row * part.a.row_stride;
  part.b.data += col * part.b.col_stride;
  part.c += row * part.c_stride + col;
  part.bias = part.bias ? part.bias + col : nullptr;
  part.a_sums = part.a_sums && col == 0 ? part.a_sums + row : nullptr;
  return part;
}

// A small C of deep factors, as the gradient of a weight is: rows and columns are too few to be shared out without
// copying one factor on every thread. So it becomes a sum of products, of a piece of the depth each. How many follows
// from the sizes alone: the order of every sum is the same for all numbers of threads. It is a power of two, as the
// number of threads mostly is.
constexpr int64_t most_pieces = 8;
constexpr int64_t least_depth_of_piece = 768;
constexpr int64_t most_elements = 128 * 1024;  // of all pieces together

int64_t pieces_for(const Gemm& p) {
  if (p.bias || p.relu) {
    return 1;
  }
  const int64_t most = std::min({most_pieces, most_elements / (p.rows * p.cols), p.depth / least_depth_of_piece});
  int64_t pieces = 1;
  while (2 * pieces <= most) {
    pieces *= 2;
  }
  return pieces;
}

// The products of the pieces after the first, and the sums of the rows of A, one piece after the other.
class Pieces {
 public:
  Pieces(const Gemm& p, int64_t count)
      : whole(p), count(count), size(p.rows * (p.cols + 1)),
        memory(count > 1 ? new float[static_cast<size_t>((count - 1) * size)] : nullptr) {}

  Gemm operator[](int64_t i) const {
    const int64_t k = whole.depth * i / count;
    Gemm piece = whole;
    piece.depth = whole.depth * (i + 1) / count - k;
    piece.a.data += k * piece.a.col_stride;
    piece.b.data += k * piece.b.row_stride;
    if (i > 0) {
      piece.c = product(i);
      piece.c_stride = whole.cols;
      piece.a_sums = whole.a_sums ? product(i) + whole.rows * whole.cols : nullptr;
      piece.accumulate = false;
    }
    return piece;
  }

  // Row `row` of C, and the sum of that row of A.
  void add_up(int64_t row) const {
    float* c = whole.c + row * whole.c_stride;
    for (int64_t i = 1; i < count; ++i) {
      const float* other = product(i) + row * whole.cols;
      for (int64_t j = 0; j < whole.cols; ++j) {
        c[j] += other[j];
      }
      if (whole.a_sums) {
        whole.a_sums[row] += product(i)[whole.rows * whole.cols + row];
      }
    }
  }

 private:
  float* product(int64_t i) const { return memory.get() + (i - 1) * size; }

  const Gemm& whole;
  int64_t count, size;
  std::unique_ptr<float[]> memory;
};

}  // namespace

void gemm(const Gemm& problem, int threads) {
  if (problem.rows <= 0 || problem.cols <= 0) {
    return;
  }
  const GemmKernel kernel = kernel_in_use();
  const int64_t rows = ceil_div(problem.rows, kernel.tile_rows), cols = ceil_div(problem.cols, kernel.tile_cols);
  const int64_t worth = problem.rows * problem.cols / 1024 * problem.depth / 1024;  // threads: 2 million operations each
  const int64_t used = std::clamp<int64_t>(worth, 1, std::max(threads, 1));
  const int64_t count = pieces_for(problem);
  const Grid grid = grid_for(rows, cols, std::max<int64_t>(1, used / count));
  const int64_t parts = grid.down * grid.across;
  const Pieces pieces(problem, count);
#pragma omp parallel num_threads(team_for(std::min(used, count * parts), threads))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count * parts; ++i) {
      const Gemm part = part_of(pieces[i / parts], kernel, grid, i % parts);
      if (part.rows > 0 && part.cols > 0) {
        kernel.multiply(part, scratch_of(kernel.scratch));
      }
    }
    if (count > 1) {
#pragma omp for schedule(static)
      for (int64_t row = 0; row < problem.rows; ++row) {
        pieces.add_up(row);
      }
    }
  }
}

}  // namespace pyseq
