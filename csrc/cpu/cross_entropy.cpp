#include "cpu/cross_entropy.h"

#include <cmath>
#include <cstring>

#include "cpu/memory.h"

namespace pyseq {

namespace {

RowKernels kernels_for(DType dtype) {
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::avx512:
      return avx512::row_kernels(dtype);
    case Isa::avx2:
      return avx2::row_kernels(dtype);
    case Isa::portable:
      break;
  }
#endif
  return portable::row_kernels(dtype);
}

const void* row_of(const CrossEntropyInput& input, int64_t row) {
  const int64_t bytes = row * input.row_stride * static_cast<int64_t>(size_of(input.dtype));
  return static_cast<const char*>(input.logits) + bytes;
}

float element(const void* row, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return static_cast<const float*>(row)[index];
    case DType::bf16:
      return to_float(static_cast<const bf16*>(row)[index]);
    default:
      return to_float(static_cast<const f16*>(row)[index]);
  }
}

void set_element(void* row, int64_t index, DType dtype, float value) {
  switch (dtype) {
    case DType::f32:
      static_cast<float*>(row)[index] = value;
      break;
    case DType::bf16:
      from_float(value, static_cast<bf16*>(row) + index);
      break;
    default:
      from_float(value, static_cast<f16*>(row) + index);
  }
}

// Whether the target is what argmax finds: the first maximum, where nan counts as the largest number.
bool is_first_maximum(const CrossEntropyInput& input, const RowKernels& kernels, const void* row, int64_t target,
                      const RowSums& sums) {
  const float value = element(row, target, input.dtype);
  if (std::isnan(sums.exp_sum)) {
    int64_t first = 0;
    while (first < input.cols && !std::isnan(element(row, first, input.dtype))) {
      ++first;
    }
    if (first < input.cols) {
      return target == first;
    }
  }
  return value == sums.max && !kernels.contains(row, target, sums.max);
}

}  // namespace

int64_t first_bad_target(const CrossEntropyInput& input) {
  for (int64_t row = 0; row < input.rows; ++row) {
    const int64_t target = input.target[row];
    if ((target < 0 || target >= input.cols) && target != input.ignore_index) {
      return row;
    }
  }
  return -1;
}

void cross_entropy_forward(const CrossEntropyInput& input, float* loss, float* nll, uint8_t* correct, float* stats,
                           int threads) {
  const RowKernels kernels = kernels_for(input.dtype);
#pragma omp parallel for num_threads(useful_threads(threads, input.rows, input.cols)) schedule(static)
  for (int64_t r = 0; r < input.rows; ++r) {
    const int64_t target = input.target[r];
    if (target == input.ignore_index) {
      loss[r] = nll[r] = 0.0f;
      correct[r] = 0;
      stats[2 * r] = 0.0f;
      stats[2 * r + 1] = 1.0f;
      continue;
    }
    const void* row = row_of(input, r);
    const RowSums sums = kernels.sums(row, input.cols);
    const RowLoss result = row_loss(sums, element(row, target, input.dtype), input.cols, input.weights);
    loss[r] = result.loss;
    nll[r] = result.nll;
    correct[r] = is_first_maximum(input, kernels, row, target, sums);
    stats[2 * r] = sums.max;
    stats[2 * r + 1] = static_cast<float>(sums.exp_sum);
  }
}

void cross_entropy_backward(const CrossEntropyInput& input, const float* grad_loss, const float* stats, void* grad,
                            int threads) {
  const RowKernels kernels = kernels_for(input.dtype);
  const int64_t row_bytes = input.cols * static_cast<int64_t>(size_of(input.dtype));
  const bool stream = is_beyond_cache(input.rows * row_bytes);
  advise_huge_pages(grad, input.rows * row_bytes);
#pragma omp parallel num_threads(useful_threads(threads, input.rows, input.cols))
  {
#pragma omp for schedule(static) nowait
    for (int64_t r = 0; r < input.rows; ++r) {
      char* out = static_cast<char*>(grad) + r * row_bytes;
      const int64_t target = input.target[r];
      if (target == input.ignore_index) {
        std::memset(out, 0, static_cast<size_t>(row_bytes));
        continue;
      }
      const void* row = row_of(input, r);
      const float max = stats[2 * r], exp_sum = stats[2 * r + 1];
      kernels.gradient(row, input.cols, max, row_gradient(grad_loss[r], exp_sum, input.weights), out, stream);
      const float logit = element(row, target, input.dtype);
      set_element(out, target, input.dtype, target_gradient(grad_loss[r], logit, max, exp_sum, input.weights));
    }
    finish_streaming();
  }
}

}  // namespace pyseq
