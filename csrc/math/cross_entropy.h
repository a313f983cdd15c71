// The scalar rule of softmax cross-entropy, for the host and the device.
//
// For a row x of V logits with class y, class weights w (1 without them) and W = sum_v w_v:
//   z      = soft_cap * tanh(x / soft_cap)                  z = x without a soft cap
//   lse    = log sum_v exp(z_v)
//   nll    = lse - z_y
//   smooth = sum_v w_v (lse - z_v)
//   loss   = nll_weight * w_y * nll + smooth_weight * smooth + z_loss * lse^2
//   dloss/dz_v = p_v * mass - smooth_weight * w_v - [v = y] nll_weight * w_y,   p = softmax(z)
//   mass       = nll_weight * w_y + smooth_weight * W + 2 * z_loss * lse
//   dz_v/dx_v  = 1 - (z_v / soft_cap)^2
// Without class weights and z-loss the mass is 1, since nll_weight + V * smooth_weight = 1 in both forms of smoothing.
//
// Everything is relative to the row's maximum: logits with a large common offset lose nothing.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/rule.h"

namespace pyseq {

// The options of a loss, the same for all its rows.
struct LossRule {
  double nll;             // weights of the terms
  double smooth;
  double z_loss = 0.0;
  float soft_cap = 0.0f;  // 0: none
};

// What a row needs to know of the class weights: w_y and W. Without class weights they are 1 and V.
struct RowWeights {
  double target;
  double total;
};

// What one pass over a row leaves behind; x is z where there is a soft cap.
struct RowSums {
  float max;
  double exp_sum;      // sum_v exp(x_v - max)
  double shifted_sum;  // sum_v w_v (x_v - max)
};

struct RowLoss {
  float loss;  // with smoothing, class weights and z-loss
  float nll;   // without
};

// A weight of 0 drops its term, even an infinite one.
PYSEQ_RULE double weighted(double weight, double term) { return weight == 0.0 ? 0.0 : weight * term; }

PYSEQ_RULE RowLoss row_loss(const RowSums& sums, float target_logit, const RowWeights& weights, const LossRule& rule) {
  const double log_sum = std::log(sums.exp_sum);
  const double lse = log_sum + static_cast<double>(sums.max);
  const double nll = log_sum - (static_cast<double>(target_logit) - static_cast<double>(sums.max));
  const double smooth = weights.total * log_sum - sums.shifted_sum;
  const double loss = weighted(rule.nll * weights.target, nll) + weighted(rule.smooth, smooth) +
                      weighted(rule.z_loss, lse * lse);
  return {static_cast<float>(loss), static_cast<float>(nll)};
}

// The gradient of logit v is exp(x_v - max) * scale - offset * w_v, for every v but the target; times cap_slope.
struct RowGradient {
  double scale;
  float offset;
  double mass;
};

PYSEQ_RULE RowGradient row_gradient(float grad_loss, float max, double exp_sum, const RowWeights& weights,
                                    const LossRule& rule) {
  const double grad = grad_loss;
  const double lse = rule.z_loss == 0.0 ? 0.0 : std::log(exp_sum) + static_cast<double>(max);
  const double mass = rule.nll * weights.target + rule.smooth * weights.total + 2.0 * rule.z_loss * lse;
  return {grad * mass / exp_sum, static_cast<float>(weighted(rule.smooth, grad)), mass};
}

// The slope of the soft cap at a capped logit.
PYSEQ_RULE float cap_slope(float capped, float soft_cap) {
  const float t = capped / soft_cap;
  return 1.0f - t * t;
}

// In double: for a confident row p_y - 1 is a small difference of large numbers. `slope` is that of the soft cap.
PYSEQ_RULE float target_gradient(float grad_loss, float target_logit, float max, double exp_sum, double mass,
                                 const RowWeights& weights, const LossRule& rule, double slope) {
  const double probability = std::exp(static_cast<double>(target_logit) - static_cast<double>(max)) / exp_sum;
  return static_cast<float>(grad_loss * slope * (probability * mass - (rule.smooth + rule.nll) * weights.target));
}

PYSEQ_RULE float target_gradient(float grad_loss, float target_logit, float max, double exp_sum, double mass,
                                 const RowWeights& weights, const LossRule& rule) {
  const double slope = rule.soft_cap == 0.0f ? 1.0 : static_cast<double>(cap_slope(target_logit, rule.soft_cap));
  return target_gradient(grad_loss, target_logit, max, exp_sum, mass, weights, rule, slope);
}

}  // namespace pyseq
