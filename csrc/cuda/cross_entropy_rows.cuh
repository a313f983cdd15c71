// The parts that the kernels of cross_entropy.cu are made of: what a thread, a warp, a block and a cluster find out
// about a row, and how a thread writes its share of the gradient.
#pragma once

#include <climits>

#include "cuda/pack.cuh"
#include "math/cross_entropy.h"

namespace pyseq {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;
// What is compiled in: each step costs the elements of a row some instructions that the one before does not.
enum class Options { plain, smoothed, all };  // all: class weights and soft cap as well

// Independent loads of a thread in flight; with all options there are registers for fewer.
template <Options options>
constexpr int batch = options == Options::all ? 1 : 4;

// ex2.approx is off by 2^-22.5 at most; expf would add only steps that reduce its argument.
__device__ inline float exp_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
  return result;
}

// -inf - -inf would be nan where exp is 0.
__device__ inline float finite_shift(float max) { return max == -INFINITY ? 0.0f : max; }

// What changes the elements of a row, and what their sums are relative to.
template <Options options>
struct Elements {
  const float* class_weight;  // of the first element at hand; null: none
  float soft_cap;             // 0: none
  float inverse_cap;          // a division would cost more than all the rest

  __device__ float capped(float x) const {
    if constexpr (options == Options::all) {
      return soft_cap == 0.0f ? x : soft_cap * tanhf(x * inverse_cap);
    }
    return x;
  }
  __device__ float weight(int i) const {
    if constexpr (options == Options::all) {
      return class_weight == nullptr ? 1.0f : __ldg(class_weight + i);
    }
    return 1.0f;
  }
};

// What is known of a part of a row.
struct Part {
  float max = -INFINITY;  // of z
  float exp_sum = 0.0f;   // sum of exp(z - finite_shift(max))
  double sum = 0.0;       // sum of w z
  int first = INT_MAX;    // first element of the first pack that has the maximum; later, the maximum itself
  int first_nan = INT_MAX;
};

// A thread's share of a row. Sums are fp32: those of z are relative to `origin`, a value of the thread's own first
// batch, so that a large common offset does not swallow them.
template <class T, Options options>
struct Scan {
  Elements<options> elements;
  float max = -INFINITY;
  float exp_sum = 0.0f;
  int first = INT_MAX;
  float origin = 0.0f;
  float sum = 0.0f;
  float weight = 0.0f;

  // Adds up to `count` packs of `width` elements, `step` apart; those from `end` on are not there.
  template <int count, int width, class P>
  __device__ void add(const P (&packs)[count], int begin, int step, int end) {
    if constexpr (options == Options::all) {
#pragma unroll
      for (int u = 0; u < count; ++u) {
        if (u == 0 || begin + u * step < end) {
          add_weighted<width>(packs[u], begin + u * step);
        }
      }
    } else {
      add_plain<count, width>(packs, begin, step, end);
    }
  }

  // The maximum moves once for the whole batch.
  template <int count, int width, class P>
  __device__ void add_plain(const P (&packs)[count], int begin, int step, int end) {
    const float before = max;
#pragma unroll
    for (int u = 0; u < count; ++u) {
      if (u == 0 || begin + u * step < end) {
        float highest = to_float(packs[u].values[0]);
#pragma unroll
        for (int k = 1; k < width; ++k) {
          highest = fmaxf(highest, to_float(packs[u].values[k]));
        }
        note(highest, begin + u * step);
      }
    }
    const float shift = moved(before);
#pragma unroll
    for (int u = 0; u < count; ++u) {
      if (u == 0 || begin + u * step < end) {
        float exps = 0.0f, differences = 0.0f;
#pragma unroll
        for (int k = 0; k < width; ++k) {
          const float difference = to_float(packs[u].values[k]) - shift;
          exps += exp_of(difference);
          differences += difference;
        }
        add_sums(exps, differences, width, shift);
      }
    }
  }

  template <int width, class P>
  __device__ void add_weighted(const P& pack, int begin) {
    const float before = max;
    float z[width];
    float highest = -INFINITY;
#pragma unroll
    for (int k = 0; k < width; ++k) {
      z[k] = elements.capped(to_float(pack.values[k]));
      highest = fmaxf(highest, z[k]);
    }
    note(highest, begin);
    const float shift = moved(before);
    float exps = 0.0f, differences = 0.0f, weights = 0.0f;
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const float w = elements.weight(begin + k);
      exps += exp_of(z[k] - shift);
      differences = fmaf(w, z[k] - shift, differences);
      weights += w;
    }
    add_sums(exps, differences, weights, shift);
  }

  __device__ void note(float highest, int begin) {
    first = highest > max || (highest == max && begin < first) ? begin : first;
    max = fmaxf(max, highest);
  }

  // Makes the sums relative to the maximum, which was `before`. Returns what they are relative to.
  __device__ float moved(float before) {
    const float shift = finite_shift(max);
    exp_sum *= exp_of(before - shift);
    if constexpr (options != Options::plain) {
      origin = before == -INFINITY ? shift : origin;
    }
    return shift;
  }

  __device__ void add_sums(float exps, float differences, float weights, float shift) {
    exp_sum += exps;
    if constexpr (options != Options::plain) {
      sum += fmaf(weights, shift - origin, differences);
      weight += weights;
    }
  }

  __device__ Part part() const {
    Part result;
    result.max = max;
    result.exp_sum = exp_sum;
    result.first = first;
    if constexpr (options != Options::plain) {
      result.sum = static_cast<double>(sum) + static_cast<double>(weight) * origin;
    }
    return result;
  }
};

// The parts of a warp's lanes as one; the same bits in every lane, whichever lane has what.
template <Options options>
__device__ inline Part joined(const Part& part) {
  Part all = part;
  for (int offset = warp_size / 2; offset > 0; offset /= 2) {
    all.max = fmaxf(all.max, __shfl_xor_sync(all_lanes, all.max, offset));
  }
  all.exp_sum *= exp_of(part.max - finite_shift(all.max));
  for (int offset = warp_size / 2; offset > 0; offset /= 2) {
    all.exp_sum += __shfl_xor_sync(all_lanes, all.exp_sum, offset);
    if constexpr (options != Options::plain) {
      all.sum += __shfl_xor_sync(all_lanes, all.sum, offset);
    }
  }
  all.first = __reduce_min_sync(all_lanes, part.max == all.max ? part.first : INT_MAX);
  all.first_nan = __reduce_min_sync(all_lanes, part.first_nan);
  return all;
}

// Turns `first` from the pack that has the maximum into the element, and finds the first nan if there is one: for
// argmax a nan is the largest number. For a whole warp; x are the elements of the part. Nothing may have been written
// over them.
template <class T, Options options>
__device__ inline void resolve(Part& part, const T* x, int count, const Elements<options>& elements) {
  const int lane = threadIdx.x % warp_size;
  const int i = (part.first == INT_MAX ? 0 : part.first) + lane;  // there is no maximum if all are nan
  const bool is_max = lane < Pack<T>::size && i < count && elements.capped(to_float(x[i])) == part.max;
  const unsigned found = __ballot_sync(all_lanes, is_max);
  part.first = i - lane + __ffs(static_cast<int>(found)) - 1;
  if (isnan(part.exp_sum)) {
    int nan = INT_MAX;
    for (int k = lane; k < count && nan == INT_MAX; k += warp_size) {
      nan = isnan(to_float(x[k])) ? k : nan;
    }
    part.first_nan = __reduce_min_sync(all_lanes, nan);
  }
}

// What the gradient of a row's elements needs.
struct Gradient {
  float max;
  float exp_sum;
  float scale;
  float offset;
  double mass;
};

// A row's elements (or a slice's) in packs of 16 bytes: `head` elements, `packs` packs, `tail` elements. The threads
// with the lowest numbers take an element of head or tail each.
template <class T>
struct Layout {
  int head;
  int packs;
  int tail;

  __device__ Layout(const T* row, int count) {
    const Split parts = split(row, count);
    head = static_cast<int>(parts.head);
    packs = static_cast<int>(parts.packs);
    tail = count - head - packs * Pack<T>::size;
  }
  __device__ int at(int pack) const { return head + pack * Pack<T>::size; }
  __device__ int end() const { return at(packs); }
  // The element at the edges that is a thread's, or -1.
  __device__ int edge(int thread) const {
    if (thread < head) {
      return thread;
    }
    const int after = thread - Pack<T>::size;
    return after >= 0 && after < tail ? end() + after : -1;
  }
  // The thread that writes an element.
  __device__ int writer(int i, int threads) const {
    return i < head ? i : i >= end() ? Pack<T>::size + i - end() : (i - head) / Pack<T>::size % threads;
  }
};

// 16 bytes from any element, of shared memory or global memory, in aligned words. Those at both ends may hold half a
// neighbour, which is not used.
template <class T>
__device__ inline Pack<T> load_unaligned(const T* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const unsigned odd = static_cast<unsigned>(address % 4);
  const auto* words = reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(p) - odd);
  const uint32_t last = odd == 0 ? 0 : words[4];
  uint32_t bits[5] = {words[0], words[1], words[2], words[3], last};
  uint4 aligned;
  aligned.x = __funnelshift_r(bits[0], bits[1], odd * 8);
  aligned.y = __funnelshift_r(bits[1], bits[2], odd * 8);
  aligned.z = __funnelshift_r(bits[2], bits[3], odd * 8);
  aligned.w = __funnelshift_r(bits[3], bits[4], odd * 8);
  return *reinterpret_cast<const Pack<T>*>(&aligned);
}

// Read once: it need not stay in L1.
template <class T>
__device__ inline Pack<T> load_once(const T* p) {
  uint4 bits;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "l"(p)
               : "memory");
  return *reinterpret_cast<const Pack<T>*>(&bits);
}

// Read again soon: L2 should give up other lines first.
template <class T>
__device__ inline Pack<T> load_to_stay(const T* p) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  uint4 bits;
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "l"(p), "l"(policy)
               : "memory");
  return *reinterpret_cast<const Pack<T>*>(&bits);
}

// The second read of load_to_stay: L2 may give the line up.
template <class T>
__device__ inline Pack<T> load_last(const T* p) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  uint4 bits;
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "l"(p), "l"(policy)
               : "memory");
  return *reinterpret_cast<const Pack<T>*>(&bits);
}

}  // namespace pyseq
