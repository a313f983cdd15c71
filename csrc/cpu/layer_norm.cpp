#include "cpu/layer_norm.h"

#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

namespace {

LayerNormKernels kernels_for(DType dtype) {
  return PYSEQ_OF_ISA(layer_norm_kernels(dtype));
}

// Sums of the chunks, in their order.
void add_chunks(const float* partial, int64_t chunks, int64_t cols, float* grad_weight, float* grad_bias) {
  std::vector<double> sums(static_cast<size_t>(2 * cols), 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < 2 * cols; ++i) {
      sums[static_cast<size_t>(i)] += static_cast<double>(partial[chunk * 2 * cols + i]);
    }
  }
  for (int64_t i = 0; i < cols; ++i) {
    grad_weight[i] = static_cast<float>(sums[static_cast<size_t>(i)]);
    grad_bias[i] = static_cast<float>(sums[static_cast<size_t>(cols + i)]);
  }
}

}  // namespace

LayerNormChunks layer_norm_chunks(int64_t rows) {
  // Within a chunk sums are fp32: the shorter, the nearer to the fp64 sum of the chunks.
  const int64_t size = std::max<int64_t>(16, (rows + 255) / 256);
  return {size, (rows + size - 1) / size};
}

void layer_norm_forward(const LayerNormRows& shape, const LayerNormForward& data, int threads) {
  const LayerNormKernels kernels = kernels_for(shape.dtype);
  const LayerNormChunks chunks = layer_norm_chunks(shape.rows);
#pragma omp parallel num_threads(team_for(useful_threads(threads, shape.rows, shape.cols), threads))
  {
    std::vector<float> work(static_cast<size_t>(shape.cols));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < chunks.count; ++i) {
      kernels.forward(shape, data, i * chunks.rows, std::min(shape.rows, (i + 1) * chunks.rows), work.data());
    }
  }
}

void layer_norm_backward(const LayerNormRows& shape, const LayerNormBackward& data, float* partial, float* grad_weight,
                         float* grad_bias, int threads) {
  const LayerNormKernels kernels = kernels_for(shape.dtype);
  const LayerNormChunks chunks = layer_norm_chunks(shape.rows);
#pragma omp parallel for num_threads(team_for(useful_threads(threads, shape.rows, shape.cols), threads)) schedule(static)
  for (int64_t i = 0; i < chunks.count; ++i) {
    kernels.backward(shape, data, i * chunks.rows, std::min(shape.rows, (i + 1) * chunks.rows),
                     partial + i * 2 * shape.cols);
  }
  add_chunks(partial, chunks.count, shape.cols, grad_weight, grad_bias);
}

}  // namespace pyseq
