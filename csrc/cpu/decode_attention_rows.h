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

// out[h] = a dot b of each of four heads, which lie next to each other.
static inline void dot_heads(const float* a, const float* b, int64_t head_dim, float* out) {
  Vec sums[4];
  for (Vec& sum : sums) {
    sum = Vec(0.0f);
  }
  int64_t i = 0;
  for (; i + Vec::width <= head_dim; i += Vec::width) {
#pragma GCC unroll 4
    for (int h = 0; h < 4; ++h) {
      sums[h] = fma(load(a + h * head_dim + i), load(b + h * head_dim + i), sums[h]);
    }
  }
  reduce_add(sums, out);
  for (; i < head_dim; ++i) {
    for (int h = 0; h < 4; ++h) {
      out[h] += a[h * head_dim + i] * b[h * head_dim + i];
    }
  }
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
  const int64_t whole = count / Vec::width * Vec::width;
  const int rest = static_cast<int>(count - whole);
  const float lowest = -std::numeric_limits<float>::infinity();
  Vec most = load(scores + whole, rest, lowest);
  for (int64_t i = 0; i < whole; i += Vec::width) {
    most = max(most, load(scores + i));
  }
  const Vec center(reduce_max(most));
  Vec sums = exp_nonpositive(load(scores + whole, rest, lowest) - center);
  store(scores + whole, sums, rest);
  for (int64_t i = 0; i < whole; i += Vec::width) {
    const Vec weight = exp_nonpositive(load(scores + i) - center);
    store(scores + i, weight);
    sums = sums + weight;
  }
  return 1.0f / reduce_add(sums);
}

// out = factor * the sum over i of weights[i] * rows[i][offset to offset + vectors * width).
template <int vectors>
static inline void mix_vectors(const float* const* rows, int64_t count, int64_t offset, const float* weights,
                               float factor, float* out) {
  Vec even[vectors], odd[vectors];  // rows in turn, for the latency of addition
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    even[v] = odd[v] = Vec(0.0f);
  }
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const float *row = rows[i] + offset, *next = rows[i + 1] + offset;
    const Vec weight(weights[i]), weight_of_next(weights[i + 1]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      even[v] = fma(weight, load(row + v * Vec::width), even[v]);
      odd[v] = fma(weight_of_next, load(next + v * Vec::width), odd[v]);
    }
  }
  if (i < count) {
    const float* row = rows[i] + offset;
    const Vec weight(weights[i]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      even[v] = fma(weight, load(row + v * Vec::width), even[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    store(out + v * Vec::width, Vec(factor) * (even[v] + odd[v]));
  }
}

// out = factor * the sum over i of weights[i] * rows[i][offset to offset + length).
static inline void mix(const float* const* rows, int64_t count, int64_t offset, const float* weights, float factor,
                       float* out, int64_t length) {
  int64_t at = 0;
  for (; at + 4 * Vec::width <= length; at += 4 * Vec::width) {
    mix_vectors<4>(rows, count, offset + at, weights, factor, out + at);
  }
  if (at + 2 * Vec::width <= length) {
    mix_vectors<2>(rows, count, offset + at, weights, factor, out + at);
    at += 2 * Vec::width;
  }
  if (at + Vec::width <= length) {
    mix_vectors<1>(rows, count, offset + at, weights, factor, out + at);
    at += Vec::width;
  }
  for (; at < length; ++at) {
    float sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      sum += weights[i] * rows[i][offset + at];
    }
    out[at] = factor * sum;
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
// `scores` has room for `count` numbers of each head. `out` does not overlap the query.
static inline void attend(const float* query, int64_t heads, int64_t head_dim, float scale, const float* const* keys,
                          int64_t count, float* scores, float* out) {
  const int64_t dim = heads * head_dim;
  if (count == 0) {
    std::fill(out, out + dim, 0.0f);
    return;
  }
  for (int64_t j = 0; j < dim; ++j) {
    out[j] = scale * query[j];
  }
  for (int64_t i = 0; i < count; ++i) {
    prefetch(keys, i, count, 2 * dim);
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4) {
      float found[4];
      dot_heads(out + h * head_dim, keys[i] + h * head_dim, head_dim, found);
      for (int j = 0; j < 4; ++j) {
        scores[(h + j) * count + i] = found[j];
      }
    }
    for (; h < heads; ++h) {
      scores[h * count + i] = dot(out + h * head_dim, keys[i] + h * head_dim, head_dim);
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    float* weights = scores + h * count;
    const float factor = exponentials(weights, count);
    mix(keys, count, dim + h * head_dim, weights, factor, out + h * head_dim, head_dim);
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
