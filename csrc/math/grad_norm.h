// What follows from a sum of squares, for the host and the device.
#pragma once

#include <cmath>

#include "math/rule.h"

namespace pyseq {

struct GradNorm {
  float norm;
  float factor;
  float found_inf;
};

// The norm of `scale` times elements whose squares add up to `squares`, and the factor that brings them to at most
// max_norm; a negative max_norm does not clip.
PYSEQ_RULE GradNorm grad_norm(double squares, double scale, double max_norm) {
  const float norm = static_cast<float>(sqrt(squares) * fabs(scale));
  double factor = scale;
  if (max_norm >= 0.0) {
    const double ratio = max_norm / (static_cast<double>(norm) + 1e-6);
    factor = ratio >= 1.0 ? scale : scale * ratio;  // a nan ratio makes the factor nan
  }
  // inf - inf and nan - nan are nan, which equals nothing.
  return {norm, static_cast<float>(factor), norm - norm == 0.0f ? 0.0f : 1.0f};
}

}  // namespace pyseq
