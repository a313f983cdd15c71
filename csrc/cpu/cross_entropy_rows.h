// One row of softmax cross-entropy in vectors; included once for each instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/cross_entropy.h"
#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

static constexpr int64_t block_size = cross_entropy_block;
static constexpr int unroll = 4;  // independent sums, for the latency of addition
static constexpr int64_t stride = unroll * Vec::width;
static constexpr float infinity = std::numeric_limits<float>::infinity();

template <class T>
static float block_max(const T* x, int64_t count) {
  Vec best[unroll] = {Vec(-infinity), Vec(-infinity), Vec(-infinity), Vec(-infinity)};
  int64_t i = 0;
  for (; i + stride <= count; i += stride) {
    for (int u = 0; u < unroll; ++u) {
      best[u] = max(best[u], load(x + i + u * Vec::width));
    }
  }
  for (; i + Vec::width <= count; i += Vec::width) {
    best[0] = max(best[0], load(x + i));
  }
  if (i < count) {
    best[0] = max(best[0], load(x + i, static_cast<int>(count - i), -infinity));
  }
  return reduce_max(max(max(best[0], best[1]), max(best[2], best[3])));
}

// The next block is fetched while this one is computed with; beyond the end of a row lies the next row, or nothing that
// matters.
template <class T>
static inline void prefetch(const T* x) {
  for (int64_t i = 0; i < stride; i += 64 / static_cast<int64_t>(sizeof(T))) {
    __builtin_prefetch(x + i);
  }
}

// What a block adds to the sums of its row, relative to a shift.
struct BlockSums {
  double exps;
  double shifted;  // of w (x - shift)
  double weights;
};

// Keeps the exponentials in `exps`, unless it is null. Calls aside(i) before the elements i to i + stride.
template <class T, bool weighted_terms, class Aside>
static BlockSums block_sums(const T* x, int64_t count, float shift, const float* weights, float* exps,
                            const Aside& aside) {
  const Vec offset(shift);
  Vec exp_sum[unroll] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  Vec shifted[unroll] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  Vec weight_sum(0.0f);
  const auto add = [&](int64_t i, int u) {
    const Vec t = load(x + i) - offset;
    const Vec e = exp_nonpositive(t);
    if (exps) {
      store(exps + i, e);
    }
    exp_sum[u] = exp_sum[u] + e;
    if (weighted_terms) {
      const Vec w = load(weights + i);
      shifted[u] = fma(w, t, shifted[u]);
      weight_sum = weight_sum + w;
    } else {
      shifted[u] = shifted[u] + t;
    }
  };
  int64_t i = 0;
  for (; i + stride <= count; i += stride) {
    prefetch(x + i + block_size);
    aside(i);
    for (int u = 0; u < unroll; ++u) {
      add(i + u * Vec::width, u);
    }
  }
  for (; i + Vec::width <= count; i += Vec::width) {
    add(i, 0);
  }
  BlockSums sums = {reduce_add((exp_sum[0] + exp_sum[1]) + (exp_sum[2] + exp_sum[3])),
                    reduce_add((shifted[0] + shifted[1]) + (shifted[2] + shifted[3])), reduce_add(weight_sum)};
  for (; i < count; ++i) {
    const float t = to_float(x[i]) - shift;
    const float e = std::exp(t);
    if (exps) {
      exps[i] = e;
    }
    sums.exps += e;
    sums.shifted += weighted_terms ? static_cast<double>(weights[i]) * t : static_cast<double>(t);
    sums.weights += weighted_terms ? weights[i] : 0.0f;
  }
  if (!weighted_terms) {
    sums.weights = static_cast<double>(count);
  }
  return sums;
}

template <class T>
static bool row_contains(const void* row, int64_t cols, float value) {
  const T* x = static_cast<const T*>(row);
  const Vec wanted(value);
  int64_t i = 0;
  for (; i + Vec::width <= cols; i += Vec::width) {
    if (any_equal(load(x + i), wanted)) {
      return true;
    }
  }
  for (; i < cols; ++i) {
    if (to_float(x[i]) == value) {
      return true;
    }
  }
  return false;
}

// The exponentials of a row, computed again.
template <class T>
struct Recomputed {
  const T* x;
  Vec max;

  Vec at(int64_t i) const { return exp_nonpositive(load(x + i) - max); }
  Vec at(int64_t i, int count) const { return exp_nonpositive(load(x + i, count, 0.0f) - max); }
};

struct Kept {
  const float* exps;

  Vec at(int64_t i) const { return load(exps + i); }
  Vec at(int64_t i, int count) const { return load(exps + i, count, 0.0f); }
};

// Elements before the first address that a streaming store can go to.
template <class T>
static int64_t elements_to_alignment(const T* out, int64_t count) {
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % 64);
  const int64_t head = misaligned == 0 ? 0 : (64 - misaligned) / static_cast<int64_t>(sizeof(T));
  return head < count ? head : count;
}

template <class T, class Values>
static void write_stored(T* out, int64_t begin, int64_t end, const Values& values) {
  for (; begin + Vec::width <= end; begin += Vec::width) {
    store(out + begin, values(begin));
  }
  if (begin < end) {
    const int lanes = static_cast<int>(end - begin);
    store(out + begin, values(begin, lanes), lanes);
  }
}

template <class T, class Values>
static inline void write_stride(T* out, int64_t begin, bool streaming, const Values& values) {
  for (int64_t i = begin; i < begin + stride; i += Vec::width) {
    if (streaming) {
      stream(out + i, values(i));
    } else {
      store(out + i, values(i));
    }
  }
}

// Writes values(i) for i in [0, count). Streaming stores bypass the cache: they need an aligned address, and pay only
// where whole cache lines are written.
template <class T, class Values>
static void write(T* out, int64_t count, bool streaming, const Values& values) {
  int64_t i = streaming ? elements_to_alignment(out, count) : 0;
  write_stored(out, 0, i, values);
  for (; i + stride <= count; i += stride) {
    write_stride(out, i, streaming, values);
  }
  write_stored(out, i, count, values);
}

// Part of a gradient: elements begin to begin + count of the row, whose exponentials times `scale` are p * mass.
template <class Exps>
struct PlainGradient {
  Exps exps;
  Vec scale, minus;

  PlainGradient(Exps e, float s, const GradientRule& rule, int64_t) : exps(e), scale(s), minus(-rule.row.offset) {}
  Vec operator()(int64_t i) const { return fma(exps.at(i), scale, minus); }
  Vec operator()(int64_t i, int count) const { return fma(exps.at(i, count), scale, minus); }
};

// The same with class weights or a soft cap.
template <class Exps>
struct GeneralGradient {
  PlainGradient<Exps> plain;
  const float* weights;
  const float* slopes;

  GeneralGradient(Exps e, float s, const GradientRule& rule, int64_t begin)
      : plain(e, s, rule, begin),
        weights(rule.class_weights ? rule.class_weights + begin : nullptr),
        slopes(rule.slopes ? rule.slopes + begin : nullptr) {}

  Vec operator()(int64_t i) const {
    const Vec minus = weights ? plain.minus * load(weights + i) : plain.minus;
    const Vec gradient = fma(plain.exps.at(i), plain.scale, minus);
    return slopes ? gradient * load(slopes + i) : gradient;
  }
  Vec operator()(int64_t i, int count) const {
    const Vec minus = weights ? plain.minus * load(weights + i, count, 0.0f) : plain.minus;
    const Vec gradient = fma(plain.exps.at(i, count), plain.scale, minus);
    return slopes ? gradient * load(slopes + i, count, 0.0f) : gradient;
  }
};

template <class T, class Exps>
static void write_gradient(Exps exps, double scale, const GradientRule& rule, int64_t begin, int64_t count, T* out,
                           bool streaming) {
  const float s = static_cast<float>(scale);
  if (rule.class_weights || rule.slopes) {
    write(out + begin, count, streaming, GeneralGradient<Exps>(exps, s, rule, begin));
  } else {
    write(out + begin, count, streaming, PlainGradient<Exps>(exps, s, rule, begin));
  }
}

template <class In, class Out>
static void gradient_of_row(const void* row, int64_t cols, float max, const GradientRule& rule, void* out,
                            bool streaming) {
  const Recomputed<In> exps{static_cast<const In*>(row), Vec(max)};
  write_gradient(exps, rule.row.scale, rule, 0, cols, static_cast<Out*>(out), streaming);
}

// What turns the kept exponentials of the block at `begin` into p * mass.
static double scale_of_block(const PendingGradient& pending, int64_t begin) {
  const double shift = pending.kept.shifts[begin / block_size];
  return pending.rule.row.scale * std::exp(shift - static_cast<double>(pending.max));
}

template <class T>
static void gradient_of_kept(const PendingGradient& pending, int64_t cols) {
  for (int64_t begin = 0; begin < cols; begin += block_size) {
    const int64_t count = cols - begin < block_size ? cols - begin : block_size;
    write_gradient(Kept{pending.kept.values + begin}, scale_of_block(pending, begin), pending.rule, begin, count,
                   static_cast<T*>(pending.out), pending.stream);
  }
}

struct Nothing {
  void operator()(int64_t) const {}
};

// Writes one stride of a block of a gradient at a time, in step with a block of sums; `finish` writes the rest.
template <class T>
struct GradientAside {
  PlainGradient<Kept> values;
  T* out;
  int64_t head, count;
  bool streaming;

  GradientAside(const PlainGradient<Kept>& v, T* o, int64_t n, bool s)
      : values(v), out(o), head(s ? elements_to_alignment(o, n) : 0), count(n), streaming(s) {}

  void operator()(int64_t i) const {
    if (head + i + stride <= count) {
      write_stride(out, head + i, streaming, values);
    }
  }
  void finish() const {
    write_stored(out, 0, head, values);
    write_stored(out, head + (count - head) / stride * stride, count, values);
  }
};

// The sums of a block and, if there is one, the same block of the gradient of the row before: reading, computing and
// writing at the same time.
template <class T>
static BlockSums sums_and_gradient(const T* x, int64_t begin, int64_t count, float shift, const float* weights,
                                   float* exps, const PendingGradient* pending) {
  if (weights) {
    return block_sums<T, true>(x, count, shift, weights, exps, Nothing{});
  }
  if (!pending) {
    return block_sums<T, false>(x, count, shift, nullptr, exps, Nothing{});
  }
  const float scale = static_cast<float>(scale_of_block(*pending, begin));
  const PlainGradient<Kept> values(Kept{pending->kept.values + begin}, scale, pending->rule, begin);
  const GradientAside<T> aside(values, static_cast<T*>(pending->out) + begin, count, pending->stream);
  const BlockSums sums = block_sums<T, false>(x, count, shift, nullptr, exps, aside);
  aside.finish();
  return sums;
}

template <class T>
static RowSums row_sums(const void* row, int64_t cols, const float* weights, const KeptExponentials* kept,
                        const PendingGradient* pending) {
  const T* x = static_cast<const T*>(row);
  float best = -infinity;
  double exp_sum = 0.0;
  double total = 0.0;  // sum of w x
  double weight_sum = 0.0;
  for (int64_t begin = 0; begin < cols; begin += block_size) {
    const int64_t count = cols - begin < block_size ? cols - begin : block_size;
    const float here = block_max(x + begin, count);
    if (here > best) {
      exp_sum *= std::exp(static_cast<double>(best) - static_cast<double>(here));
      best = here;
    }
    const float shift = best == -infinity ? 0.0f : best;  // -inf - -inf would be nan where exp is 0
    float* exps = kept ? kept->values + begin : nullptr;
    const BlockSums block = sums_and_gradient(x + begin, begin, count, shift, weights ? weights + begin : nullptr,
                                              exps, pending);
    if (kept) {
      kept->shifts[begin / block_size] = best;
    }
    exp_sum += block.exps;
    total += block.shifted + block.weights * shift;
    weight_sum += block.weights;
  }
  return {best, exp_sum, total - weight_sum * best};
}

// tanh(u) for |u| < 5/8 as u + u^3 P(u^2), P minimax: the quotient of exponentials below loses the digits of small u.
static inline float tanh_of_small(float u) {
  const float s = u * u;
  const float p = ((-0.00559101654f * s + 0.0205388205f) * s - 0.0537096577f) * s + 0.133310923f;
  return u + u * s * (p * s - 0.333332695f);
}

template <class T>
static void cap_row(const void* row, int64_t cols, float soft_cap, float* capped, float* slopes) {
  const T* x = static_cast<const T*>(row);
  constexpr int64_t lanes = 64;
  float u[lanes], e[lanes];
  for (int64_t begin = 0; begin < cols; begin += lanes) {
    const int64_t count = cols - begin < lanes ? cols - begin : lanes;
    for (int64_t i = 0; i < count; ++i) {
      u[i] = to_float(x[begin + i]) / soft_cap;
    }
    for (int64_t i = count; i < lanes; ++i) {
      u[i] = 0.0f;
    }
    for (int64_t i = 0; i < lanes; i += Vec::width) {
      const Vec v = load(u + i);
      store(e + i, exp_nonpositive(Vec(-2.0f) * max(Vec(0.0f) - v, v)));
    }
    for (int64_t i = 0; i < count; ++i) {
      // For large u 1 - tanh^2 would cancel.
      const bool is_small = std::fabs(u[i]) < 0.625f;
      const float small = tanh_of_small(u[i]);
      const float large = std::copysign(1.0f - 2.0f * e[i] / (1.0f + e[i]), u[i]);
      capped[begin + i] = soft_cap * (is_small ? small : large);
      slopes[begin + i] = is_small ? 1.0f - small * small : 4.0f * e[i] / ((1.0f + e[i]) * (1.0f + e[i]));
    }
  }
}

template <class T>
static RowKernels row_kernels_of() {
  return {cap_row<T>,           row_sums<T>, row_contains<T>, gradient_of_row<T, T>, gradient_of_row<float, T>,
          gradient_of_kept<T>};
}

RowKernels row_kernels(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return row_kernels_of<float>();
    case DType::bf16:
      return row_kernels_of<bf16>();
    default:
      return row_kernels_of<f16>();
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
