// The scalar rule of Adam and AdamW, for the host and the device, for single numbers and for vectors of them.
//
// With t the number of the step, g the gradient as it is to be used, and for Adam without decoupling g + weight_decay p:
//   p = p - lr weight_decay p                       decoupled
//   m = m + (1 - beta1) (g - m)
//   v = beta2 v + (1 - beta2) g^2
//   p = p - size m / (sqrt(v) + eps')
// Both places of eps are this one form: size = lr sqrt(1 - beta2^t) / (1 - beta1^t), and eps' is eps (added to the root
// of v as it is) or eps sqrt(1 - beta2^t) (added to the root of v / (1 - beta2^t)).
#pragma once

#include <cmath>

#include "math/rule.h"

namespace pyseq {

struct AdamRule {
  double beta1, beta2, eps, weight_decay;
  bool decoupled;
  bool corrected_eps;  // eps is added to the root of the corrected v, as torch does
  bool maximize;
};

// What is the same for all elements of a step, rounded once from double.
struct AdamStep {
  float gradient;  // multiplies what is read
  float l2;        // weight decay into the gradient
  float decay;     // weight decay of the parameter
  float rest1;  // 1 - beta1
  float beta2, rest2;
  float size, eps;
};

// The step after `done` steps.
PYSEQ_RULE AdamStep adam_step(const AdamRule& rule, double done, double lr, double factor, double grad_scale) {
  const double t = done + 1.0;
  const double correction1 = 1.0 - pow(rule.beta1, t);
  const double root2 = sqrt(1.0 - pow(rule.beta2, t));
  AdamStep step;
  step.gradient = static_cast<float>((rule.maximize ? -factor : factor) / grad_scale);
  step.l2 = static_cast<float>(rule.decoupled ? 0.0 : rule.weight_decay);
  step.decay = static_cast<float>(rule.decoupled ? lr * rule.weight_decay : 0.0);
  step.rest1 = static_cast<float>(1.0 - rule.beta1);
  step.beta2 = static_cast<float>(rule.beta2);
  step.rest2 = static_cast<float>(1.0 - rule.beta2);
  step.size = static_cast<float>(lr * root2 / correction1);
  step.eps = static_cast<float>(rule.corrected_eps ? rule.eps * root2 : rule.eps);
  return step;
}

PYSEQ_RULE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
PYSEQ_RULE float root(float a) { return ::sqrtf(a); }
// Where either is nan, the result is nan.
PYSEQ_RULE float larger(float a, float b) { return a > b || a != a ? a : b; }

// The terms that a step has. Callers that know them before they are compiled, have loops without branches.
struct AdamTerms {
  bool l2, decay;
};

PYSEQ_RULE AdamTerms adam_terms(const AdamStep& step) { return {step.l2 != 0.0f, step.decay != 0.0f}; }

// F is float or a vector of it. `largest` is null, or the largest v so far, which takes the place of v (amsgrad).
template <class F>
PYSEQ_RULE void adam_update(const AdamStep& step, AdamTerms terms, F grad, F* param, F* exp_avg, F* exp_avg_sq,
                            F* largest) {
  F g = grad * F(step.gradient);
  if (terms.l2) {
    g = fma(F(step.l2), *param, g);
  }
  const F decayed = terms.decay ? fma(F(-step.decay), *param, *param) : *param;
  // Not beta1 m + (1 - beta1) g: the roundings of the two factors do not add up to 1, and m would drift.
  *exp_avg = fma(F(step.rest1), g - *exp_avg, *exp_avg);
  *exp_avg_sq = fma(F(step.beta2), *exp_avg_sq, F(step.rest2) * g * g);
  F v = *exp_avg_sq;
  if (largest != nullptr) {
    v = *largest = larger(*largest, v);
  }
  *param = fma(F(-step.size), *exp_avg / (root(v) + F(step.eps)), decayed);
}

}  // namespace pyseq
