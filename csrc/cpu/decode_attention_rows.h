// Attention of one query over keys that lie anywhere, in vectors; included once for each instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

static inline float dot(const float* a, const float* b, int64_t count) {
  Vec first(0.0f), second(0.0f);
  int64_t i = 0;
  for (; i + 2 * Vec::width <= count; i += 2 * Vec::width) {
    first = fma(load(a + i), load(b + i), first);
    second = fma(load(a + i + Vec::width), load(b + i + Vec::width), second);
  }
  for (; i + Vec::width <= count; i += Vec::width) {
    first = fma(load(a + i), load(b + i), first);
  }
  float sum = reduce_add(first + second);
  for (; i < count; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

// y += factor * x
static inline void add_scaled(const float* x, float factor, float* y, int64_t count) {
  const Vec all(factor);
  int64_t i = 0;
  for (; i + Vec::width <= count; i += Vec::width) {
    store(y + i, fma(all, load(x + i), load(y + i)));
  }
  for (; i < count; ++i) {
    y[i] += factor * x[i];
  }
}

// exp(scores - their largest) in place; returns 1 / their sum.
static inline float exponentials(float* scores, int64_t count) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, scores[i]);
  }
  Vec sums(0.0f);
  const Vec center(largest);
  int64_t i = 0;
  for (; i + Vec::width <= count; i += Vec::width) {
    const Vec weight = exp_nonpositive(load(scores + i) - center);
    store(scores + i, weight);
    sums = sums + weight;
  }
  float sum = reduce_add(sums);
  if (i < count) {
    float lanes[Vec::width];
    store(lanes, exp_nonpositive(load(scores + i, static_cast<int>(count - i), largest) - center));
    for (int64_t j = 0; i + j < count; ++j) {
      scores[i + j] = lanes[j];
      sum += lanes[j];
    }
  }
  return 1.0f / sum;
}

// out = the sum over i of weights[i] * rows[i][offset to offset + length).
static inline void mix(const float* const* rows, int64_t count, int64_t offset, const float* weights, float* out,
                       int64_t length) {
  int64_t at = 0;
  for (; at + 4 * Vec::width <= length; at += 4 * Vec::width) {
    Vec a(0.0f), b(0.0f), c(0.0f), d(0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const float* row = rows[i] + offset + at;
      const Vec weight(weights[i]);
      a = fma(weight, load(row), a);
      b = fma(weight, load(row + Vec::width), b);
      c = fma(weight, load(row + 2 * Vec::width), c);
      d = fma(weight, load(row + 3 * Vec::width), d);
    }
    store(out + at, a);
    store(out + at + Vec::width, b);
    store(out + at + 2 * Vec::width, c);
    store(out + at + 3 * Vec::width, d);
  }
  if (at < length) {
    std::fill(out + at, out + length, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      add_scaled(rows[i] + offset + at, weights[i], out + at, length - at);
    }
  }
}

// Keys lie apart, each too short for the processor to foresee the next: begin to load what comes some keys later,
// with its value.
static constexpr int64_t keys_ahead = 4;
static inline void prefetch(const float* const* keys, int64_t i, int64_t count, int64_t length) {
  if (i + keys_ahead < count) {
    const float* next = keys[i + keys_ahead];
    for (int64_t j = 0; j < length; j += 16) {
      __builtin_prefetch(next + j);
    }
  }
}

// The attention of a query [heads, head_dim] over keys[0 to count), each followed by its value; zeros without a key.
// `scores` has room for `count` numbers of each head.
static inline void attend(const float* query, int64_t heads, int64_t head_dim, float scale, const float* const* keys,
                          int64_t count, float* scores, float* out) {
  const int64_t dim = heads * head_dim;
  if (count == 0) {
    std::fill(out, out + dim, 0.0f);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    prefetch(keys, i, count, 2 * dim);
    for (int64_t h = 0; h < heads; ++h) {
      scores[h * count + i] = scale * dot(query + h * head_dim, keys[i] + h * head_dim, head_dim);
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    float* weights = scores + h * count;
    const float factor = exponentials(weights, count);
    for (int64_t i = 0; i < count; ++i) {
      weights[i] *= factor;
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    mix(keys, count, dim + h * head_dim, scores + h * count, out + h * head_dim, head_dim);
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
