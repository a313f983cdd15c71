// The scalar rule of dropout (Srivastava et al. 2014, scaled in training), for the host and the device.
//
// Element i stays, times 1 / (1 - p), if half i of a random stream (math/random.h) is above a limit; else it is 0, even
// where it was inf or nan. A half has 16 bits: p counts as the nearest multiple of 2^-16.
#pragma once

#include <cstdint>

#include "math/random.h"
#include "math/rule.h"

namespace pyseq {

struct Dropout {
  RandomStream stream;
  int limit;  // -1: nothing is dropped; 65535: everything
  float scale;
};

PYSEQ_RULE Dropout dropout_of(double p, int64_t seed) {
  const int limit = static_cast<int>(p * 65536.0 + 0.5) - 1;
  return {{static_cast<uint64_t>(seed), 0}, limit, p < 1.0 ? static_cast<float>(1.0 / (1.0 - p)) : 0.0f};
}

PYSEQ_RULE float dropped(const Dropout& dropout, float x, uint32_t random_half) {
  return static_cast<int>(random_half) > dropout.limit ? x * dropout.scale : 0.0f;
}

}  // namespace pyseq
