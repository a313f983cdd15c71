// The scalar rule of softmax cross-entropy with label smoothing, for the host and the device.
//
// For a row x of V logits with class y:
//   nll    = log sum_v exp(x_v) - x_y
//   smooth = sum_v (log sum_u exp(x_u) - x_v)
//   loss   = nll_weight * nll + smooth_weight * smooth
//   dloss/dx_v = p_v - smooth_weight - [v = y] nll_weight,   p = softmax(x)
// p has the factor 1 because nll_weight + V * smooth_weight = 1 in both forms of smoothing.
//
// Everything is relative to the row's maximum: logits with a large common offset lose nothing.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define PYSEQ_RULE static __host__ __device__ inline
#else
#define PYSEQ_RULE static inline  // internal linkage: each instruction set compiles its own copy
#endif

namespace pyseq {

struct SmoothingWeights {
  double nll;
  double smooth;
};

// What one pass over a row leaves behind.
struct RowSums {
  float max;
  double exp_sum;      // sum_v exp(x_v - max)
  double shifted_sum;  // sum_v (x_v - max)
};

struct RowLoss {
  float loss;
  float nll;
};

// A weight of 0 drops its term, even an infinite one.
PYSEQ_RULE double weighted(double weight, double term) { return weight == 0.0 ? 0.0 : weight * term; }

PYSEQ_RULE RowLoss row_loss(const RowSums& sums, float target_logit, int64_t cols, const SmoothingWeights& weights) {
  const double log_sum = std::log(sums.exp_sum);
  const double nll = log_sum - (static_cast<double>(target_logit) - static_cast<double>(sums.max));
  const double smooth = static_cast<double>(cols) * log_sum - sums.shifted_sum;
  const double loss = weighted(weights.nll, nll) + weighted(weights.smooth, smooth);
  return {static_cast<float>(loss), static_cast<float>(nll)};
}

// The gradient of logit v is exp(x_v - max) * scale - offset, for every v but the target.
struct RowGradient {
  float scale;
  float offset;
};

PYSEQ_RULE RowGradient row_gradient(float grad_loss, float exp_sum, const SmoothingWeights& weights) {
  const double grad = grad_loss;
  return {static_cast<float>(grad / exp_sum), static_cast<float>(weighted(weights.smooth, grad))};
}

// In double: for a confident row p_y - 1 is a small difference of large numbers.
PYSEQ_RULE float target_gradient(float grad_loss, float target_logit, float max, float exp_sum,
                                 const SmoothingWeights& weights) {
  const double probability = std::exp(static_cast<double>(target_logit) - static_cast<double>(max)) / exp_sum;
  return static_cast<float>(grad_loss * (probability - weights.smooth - weights.nll));
}

}  // namespace pyseq
