// 4 lanes in the compiler's own vector type, for any processor. See cpu/vec.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/dtype.h"
#include "math/random.h"

#define PYSEQ_ISA portable

namespace pyseq {
namespace portable {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

struct Vec {
  static constexpr int width = 4;
  Float4 lanes;

  Vec() = default;
  Vec(Float4 l) : lanes(l) {}
  explicit Vec(float all) : lanes(Float4{all, all, all, all}) {}
};

static inline Vec operator+(Vec a, Vec b) { return a.lanes + b.lanes; }
static inline Vec operator-(Vec a, Vec b) { return a.lanes - b.lanes; }
static inline Vec operator*(Vec a, Vec b) { return a.lanes * b.lanes; }
static inline Vec fma(Vec a, Vec b, Vec c) { return a.lanes * b.lanes + c.lanes; }

// Where either is nan, the result is b.
static inline Vec max(Vec a, Vec b) { return a.lanes > b.lanes ? a.lanes : b.lanes; }

// Where either is nan, the result is nan.
static inline Vec larger(Vec a, Vec b) {
  const Float4 max = a.lanes > b.lanes ? a.lanes : b.lanes;
  return a.lanes == a.lanes ? max : a.lanes;
}
static inline Vec operator/(Vec a, Vec b) { return a.lanes / b.lanes; }
static inline Vec root(Vec a) {
  return Float4{std::sqrt(a.lanes[0]), std::sqrt(a.lanes[1]), std::sqrt(a.lanes[2]), std::sqrt(a.lanes[3])};
}

// A sum of squares in fp64.
struct SquareSum {
  typedef double Double4 __attribute__((vector_size(32)));
  Double4 sums = {};

  void add(Vec a) {
    const Double4 wide = __builtin_convertvector(a.lanes, Double4);
    sums = sums + wide * wide;
  }
  double total() const { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }
};

static inline float reduce_max(Vec a) {
  const float low = a.lanes[0] > a.lanes[1] ? a.lanes[0] : a.lanes[1];
  const float high = a.lanes[2] > a.lanes[3] ? a.lanes[2] : a.lanes[3];
  return low > high ? low : high;
}
static inline float reduce_add(Vec a) { return (a.lanes[0] + a.lanes[1]) + (a.lanes[2] + a.lanes[3]); }

// out[i] = the sum of the lanes of rows[i].
static inline void reduce_add(const Vec (&rows)[4], float* out) {
  for (int i = 0; i < 4; ++i) {
    out[i] = reduce_add(rows[i]);
  }
}
static inline bool any_equal(Vec a, Vec b) {
  const Int4 equal = a.lanes == b.lanes;
  return (equal[0] | equal[1] | equal[2] | equal[3]) != 0;
}

static inline bool any_above(Vec a, float bound) {
  const Int4 above = a.lanes > bound;
  return (above[0] | above[1] | above[2] | above[3]) != 0;
}

static constexpr float exp_lower_bound = -87.33654f;  // exp of it is the smallest normal number
static inline Vec clamp_below(Vec a, float bound) { return max(Vec(bound), a); }

// Adding 1.5 * 2^23 leaves no bits for a fraction: the hardware rounds it away.
static constexpr float integer_bits = 12582912.0f;
static inline Vec round_to_even(Vec a) { return (a.lanes + integer_bits) - integer_bits; }
static inline Vec scale_by_power(Vec p, Vec n, Vec t) {
  const Float4 shifted = n.lanes + (integer_bits + 127.0f);
  Int4 exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent = exponent << 23;
  Float4 power;
  std::memcpy(&power, &exponent, sizeof power);
  return t.lanes < exp_lower_bound ? Float4{} : p.lanes * power;
}

// Lane j of rows[i] and lane i of rows[j] change places.
static inline void transpose(Vec (&rows)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const float lane = rows[i].lanes[j];
      rows[i].lanes[j] = rows[j].lanes[i];
      rows[j].lanes[i] = lane;
    }
  }
}

// Loads and stores of whole vectors, and of the first `count` lanes.
static inline Vec load(const float* p) {
  Float4 lanes;
  std::memcpy(&lanes, p, sizeof lanes);
  return lanes;
}
static inline void store(float* p, Vec a) { std::memcpy(p, &a.lanes, sizeof a.lanes); }

template <class T>
static inline Vec load(const T* p) {
  return Float4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
template <class T>
static inline Vec load(const T* p, int count, float fill) {
  Float4 lanes = {fill, fill, fill, fill};
  for (int i = 0; i < count; ++i) {
    lanes[i] = to_float(p[i]);
  }
  return lanes;
}
template <class T>
static inline void store(T* p, Vec a, int count) {
  for (int i = 0; i < count; ++i) {
    from_float(a.lanes[i], p + i);
  }
}
template <class T>
static inline void store(T* p, Vec a) {
  store(p, a, Vec::width);
}
template <class T>
static inline void stream(T* p, Vec a) {
  store(p, a);
}

// 4 lanes of 32 bits.
typedef uint32_t UInt4 __attribute__((vector_size(16)));
struct Bits {
  UInt4 lanes;
};

static inline Bits load_bits(const uint32_t* p) {
  Bits a;
  std::memcpy(&a.lanes, p, sizeof a.lanes);
  return a;
}
static inline void store_bits(void* p, Bits a) { std::memcpy(p, &a.lanes, sizeof a.lanes); }
static inline Bits low_halves(Bits a) { return {a.lanes & 0xffffu}; }
static inline Bits high_halves(Bits a) { return {a.lanes >> 16}; }

// 4 lanes of 32 bits as math/random.h multiplies them: each in the low half of 64 bits.
typedef uint64_t ULong4 __attribute__((vector_size(32)));
struct BlockLanes {
  static constexpr int width = 4;
  ULong4 lanes;

  BlockLanes(const ULong4& l) : lanes(l) {}
  explicit BlockLanes(uint32_t all) : lanes(ULong4{all, all, all, all}) {}

  static BlockLanes counting_from(uint32_t first) {
    const uint64_t begin = first;
    return ULong4{begin, begin + 1, begin + 2, begin + 3};
  }

  void copy_to(Bits* out) const {
    for (int i = 0; i < width; ++i) {
      out->lanes[i] = static_cast<uint32_t>(lanes[i]);
    }
  }
};

static inline BlockLanes operator^(const BlockLanes& a, const BlockLanes& b) { return a.lanes ^ b.lanes; }

static inline void multiply(const BlockLanes& a, uint32_t constant, BlockLanes* high, BlockLanes* low) {
  const ULong4 product = a.lanes * static_cast<uint64_t>(constant);
  high->lanes = product >> 32;
  low->lanes = product & 0xffffffffu;
}

// The rule is round_stochastically of math/random.h; the low 16 bits of each lane of `random` are used.
static inline void store_stochastically(bf16* p, Vec a, Bits random, int count = Vec::width) {
  for (int i = 0; i < count; ++i) {
    p[i].bits = static_cast<uint16_t>(round_stochastically(bits_of(a.lanes[i]), random.lanes[i] & 0xffffu));
  }
}

// Lanes whose 16 bits of `halves`, as a number, are above limit (-1 to 65535); 0 elsewhere.
static inline Vec keep_above(Vec a, const uint16_t* halves, int limit) {
  const Int4 wide = {halves[0], halves[1], halves[2], halves[3]};
  return wide > limit ? a.lanes : Float4{};
}

}  // namespace portable
}  // namespace pyseq
