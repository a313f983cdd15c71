// Softmax cross-entropy: one block a row. The rule is in math/cross_entropy.h.
//
// Forward reads a row once: each thread keeps a running maximum and sums relative to it, and the block joins them in a
// fixed order. Backward reads it again and writes the gradient.
#include "cuda/cross_entropy.h"

#include "cuda/pack.cuh"
#include "math/cross_entropy.h"

namespace pyseq {
namespace {

constexpr int warp_size = 32;
constexpr int max_warps = 32;

struct Row {
  int64_t cols;
  int64_t row_stride;
  int64_t ignore_index;
  LossRule weights;
};

// The sums of part of a row, and whether the target's value occurs before the target or a nan anywhere.
struct Partial {
  float max;
  float exp_sum;
  double total;        // sum of x
  int equal_before;    // elements before the target that equal it
  int64_t first_nan;   // cols if there is none
};

__device__ inline float finite_shift(float max) { return max == -INFINITY ? 0.0f : max; }

__device__ inline Partial empty_partial(int64_t cols) { return {-INFINITY, 0.0f, 0.0, 0, cols}; }

__device__ inline Partial joined(const Partial& a, const Partial& b) {
  const float max = fmaxf(a.max, b.max);
  const float shift = finite_shift(max);
  return {max, a.exp_sum * expf(a.max - shift) + b.exp_sum * expf(b.max - shift), a.total + b.total,
          a.equal_before + b.equal_before, a.first_nan < b.first_nan ? a.first_nan : b.first_nan};
}

__device__ inline Partial from_lane(const Partial& p, int offset) {
  constexpr unsigned all = 0xffffffffu;
  return {__shfl_xor_sync(all, p.max, offset), __shfl_xor_sync(all, p.exp_sum, offset),
          __shfl_xor_sync(all, p.total, offset), __shfl_xor_sync(all, p.equal_before, offset),
          __shfl_xor_sync(all, p.first_nan, offset)};
}

__device__ inline Partial joined_in_warp(Partial p) {
  for (int offset = warp_size / 2; offset > 0; offset /= 2) {
    p = joined(p, from_lane(p, offset));
  }
  return p;
}

// The result is right in thread 0 only.
__device__ inline Partial joined_in_block(Partial p, int64_t cols) {
  __shared__ Partial of_warp[max_warps];
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  const int warps = (blockDim.x + warp_size - 1) / warp_size;
  p = joined_in_warp(p);
  __syncthreads();  // the row before may still be reading
  if (lane == 0) {
    of_warp[warp] = p;
  }
  __syncthreads();
  return warp == 0 ? joined_in_warp(lane < warps ? of_warp[lane] : empty_partial(cols)) : p;
}

__device__ inline void note(Partial& p, float value, int64_t index, float target_value, int64_t target) {
  p.equal_before += index < target && value == target_value;
  p.first_nan = isnan(value) && index < p.first_nan ? index : p.first_nan;
}

template <class T>
__device__ inline void add(Partial& p, const T* values, int count, int64_t index, float target_value, int64_t target) {
  float max = p.max;
  for (int i = 0; i < count; ++i) {
    max = fmaxf(max, to_float(values[i]));
  }
  const float shift = finite_shift(max);
  float exp_sum = p.exp_sum * expf(p.max - shift);
  float shifted = 0.0f;
  for (int i = 0; i < count; ++i) {
    const float value = to_float(values[i]);
    exp_sum += expf(value - shift);
    shifted += value - shift;
    note(p, value, index + i, target_value, target);
  }
  p.max = max;
  p.exp_sum = exp_sum;
  p.total += static_cast<double>(shifted) + static_cast<double>(count) * shift;
}

template <class T>
__global__ void forward_kernel(const T* logits, const int64_t* targets, int64_t rows, Row shape, float* loss,
                               float* nll, uint8_t* correct, float* stats) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int64_t target = targets[r];
    if (target == shape.ignore_index) {
      if (threadIdx.x == 0) {
        loss[r] = nll[r] = 0.0f;
        correct[r] = 0;
        stats[2 * r] = 0.0f;
        stats[2 * r + 1] = 1.0f;
      }
      continue;
    }
    const T* x = logits + r * shape.row_stride;
    const bool valid = target >= 0 && target < shape.cols;
    const float target_value = valid ? to_float(x[target]) : NAN;
    const Split parts = split(x, shape.cols);
    Partial p = empty_partial(shape.cols);
    for (int64_t i = threadIdx.x; i < parts.head; i += blockDim.x) {
      add(p, x + i, 1, i, target_value, target);
    }
    for (int64_t i = threadIdx.x; i < parts.packs; i += blockDim.x) {
      const int64_t index = parts.head + i * Pack<T>::size;
      const Pack<T> pack = load_pack(x + index);
      add(p, pack.values, Pack<T>::size, index, target_value, target);
    }
    for (int64_t i = parts.head + parts.packs * Pack<T>::size + threadIdx.x; i < shape.cols; i += blockDim.x) {
      add(p, x + i, 1, i, target_value, target);
    }
    p = joined_in_block(p, shape.cols);
    if (threadIdx.x == 0) {
      const RowSums sums{p.max, p.exp_sum, p.total - static_cast<double>(shape.cols) * p.max};
      const RowLoss result = row_loss(sums, target_value, {1.0, static_cast<double>(shape.cols)}, shape.weights);
      loss[r] = result.loss;
      nll[r] = result.nll;
      correct[r] = p.first_nan < shape.cols ? target == p.first_nan : target_value == p.max && p.equal_before == 0;
      stats[2 * r] = p.max;
      stats[2 * r + 1] = valid ? p.exp_sum : NAN;
    }
  }
}

template <class T>
__global__ void backward_kernel(const T* logits, const int64_t* targets, int64_t rows, Row shape,
                                const float* grad_loss, const float* stats, T* grad) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int64_t target = targets[r];
    const bool ignored = target == shape.ignore_index;
    const T* x = logits + r * shape.row_stride;
    T* out = grad + r * shape.cols;
    const float max = stats[2 * r], exp_sum = stats[2 * r + 1];
    const RowWeights ones{1.0, static_cast<double>(shape.cols)};
    const RowGradient rule = row_gradient(grad_loss[r], max, exp_sum, ones, shape.weights);
    const auto at = [&](T logit, int64_t index) {
      if (ignored) {
        return from_float<T>(0.0f);  // by selection: the logits may be inf or nan
      }
      if (index == target) {
        return from_float<T>(target_gradient(grad_loss[r], to_float(logit), max, exp_sum, rule.mass, ones,
                                             shape.weights));
      }
      return from_float<T>(fmaf(expf(to_float(logit) - max), static_cast<float>(rule.scale), -rule.offset));
    };
    const Split parts = split(out, shape.cols);
    // Packs are aligned for the store. They are so for the load too where the rows of both matrices begin alike.
    const bool same_alignment = (reinterpret_cast<uintptr_t>(x) - reinterpret_cast<uintptr_t>(out)) % 16 == 0;
    for (int64_t i = threadIdx.x; i < parts.head; i += blockDim.x) {
      out[i] = at(x[i], i);
    }
    for (int64_t i = threadIdx.x; i < parts.packs; i += blockDim.x) {
      const int64_t index = parts.head + i * Pack<T>::size;
      Pack<T> pack{};
      if (!ignored && same_alignment) {
        pack = load_pack(x + index);
      } else if (!ignored) {
        for (int k = 0; k < Pack<T>::size; ++k) {
          pack.values[k] = x[index + k];
        }
      }
      for (int k = 0; k < Pack<T>::size; ++k) {
        pack.values[k] = at(pack.values[k], index + k);
      }
      store_pack(out + index, pack);
    }
    for (int64_t i = parts.head + parts.packs * Pack<T>::size + threadIdx.x; i < shape.cols; i += blockDim.x) {
      out[i] = at(x[i], i);
    }
  }
}

// Threads of a block: 4 packs a thread, in whole warps.
int threads_for(int64_t cols, int pack_size) {
  const int64_t wanted = (cols / pack_size + 3) / 4;
  const int64_t whole = (wanted + warp_size - 1) / warp_size * warp_size;
  return static_cast<int>(whole < warp_size ? warp_size : whole > 1024 ? 1024 : whole);
}

unsigned blocks_for(int64_t rows) { return static_cast<unsigned>(rows < 0x7fffffff ? rows : 0x7fffffff); }

template <class T>
cudaError_t run_forward(const void* logits, const int64_t* target, int64_t rows, const Row& shape, float* loss,
                        float* nll, uint8_t* correct, float* stats, cudaStream_t stream) {
  const int threads = threads_for(shape.cols, Pack<T>::size);
  forward_kernel<T><<<blocks_for(rows), threads, 0, stream>>>(static_cast<const T*>(logits), target, rows, shape, loss,
                                                              nll, correct, stats);
  return cudaGetLastError();
}

template <class T>
cudaError_t run_backward(const void* logits, const int64_t* target, int64_t rows, const Row& shape,
                         const float* grad_loss, const float* stats, void* grad, cudaStream_t stream) {
  const int threads = threads_for(shape.cols, Pack<T>::size);
  backward_kernel<T><<<blocks_for(rows), threads, 0, stream>>>(static_cast<const T*>(logits), target, rows, shape,
                                                               grad_loss, stats, static_cast<T*>(grad));
  return cudaGetLastError();
}

}  // namespace
}  // namespace pyseq

using namespace pyseq;

cudaError_t pyseq_cross_entropy_forward(const void* logits, int dtype, const int64_t* target, int64_t rows,
                                        int64_t cols, int64_t row_stride, int64_t ignore_index, double nll_weight,
                                        double smooth_weight, float* loss, float* nll, uint8_t* correct, float* stats,
                                        cudaStream_t stream) {
  const Row shape{cols, row_stride, ignore_index, {nll_weight, smooth_weight}};
  if (rows == 0) {
    return cudaSuccess;
  }
  switch (dtype) {
    case 0:
      return run_forward<float>(logits, target, rows, shape, loss, nll, correct, stats, stream);
    case 1:
      return run_forward<__nv_bfloat16>(logits, target, rows, shape, loss, nll, correct, stats, stream);
    case 2:
      return run_forward<__half>(logits, target, rows, shape, loss, nll, correct, stats, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t pyseq_cross_entropy_backward(const void* logits, int dtype, const int64_t* target, int64_t rows,
                                         int64_t cols, int64_t row_stride, int64_t ignore_index, double nll_weight,
                                         double smooth_weight, const float* grad_loss, const float* stats, void* grad,
                                         cudaStream_t stream) {
  const Row shape{cols, row_stride, ignore_index, {nll_weight, smooth_weight}};
  if (rows == 0 || cols == 0) {
    return cudaSuccess;
  }
  switch (dtype) {
    case 0:
      return run_backward<float>(logits, target, rows, shape, grad_loss, stats, grad, stream);
    case 1:
      return run_backward<__nv_bfloat16>(logits, target, rows, shape, grad_loss, stats, grad, stream);
    case 2:
      return run_backward<__half>(logits, target, rows, shape, grad_loss, stats, grad, stream);
    default:
      return cudaErrorInvalidValue;
  }
}
