// 8 lanes of AVX2 with FMA and F16C. See cpu/vec.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/dtype.h"

#define PYSEQ_ISA avx2

namespace pyseq {
namespace avx2 {

struct Vec {
  static constexpr int width = 8;
  __m256 lanes;

  Vec() = default;
  Vec(__m256 l) : lanes(l) {}
  explicit Vec(float all) : lanes(_mm256_set1_ps(all)) {}
};

static inline Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.lanes, b.lanes); }
static inline Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.lanes, b.lanes); }
static inline Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.lanes, b.lanes); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.lanes, b.lanes, c.lanes); }

// Where either is nan, the result is b.
static inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a.lanes, b.lanes); }

// Where either is nan, the result is nan.
static inline Vec larger(Vec a, Vec b) {
  const __m256 max = _mm256_max_ps(a.lanes, b.lanes);
  return _mm256_blendv_ps(max, a.lanes, _mm256_cmp_ps(a.lanes, a.lanes, _CMP_UNORD_Q));
}
static inline Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.lanes, b.lanes); }
static inline Vec root(Vec a) { return _mm256_sqrt_ps(a.lanes); }

// A sum of squares in fp64.
struct SquareSum {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();

  void add(Vec a) {
    const __m256d first = _mm256_cvtps_pd(_mm256_castps256_ps128(a.lanes));
    const __m256d second = _mm256_cvtps_pd(_mm256_extractf128_ps(a.lanes, 1));
    low = _mm256_fmadd_pd(first, first, low);
    high = _mm256_fmadd_pd(second, second, high);
  }
  double total() const {
    const __m256d four = _mm256_add_pd(low, high);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
};

static inline float reduce_max(Vec a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline float reduce_add(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// out[i] = the sum of the lanes of rows[i].
static inline void reduce_add(const Vec (&rows)[4], float* out) {
  __m256 pairs[2];  // in each group of four lanes: of one row, of the next, of one row, of the next
  for (int i = 0; i < 2; ++i) {
    const __m256 a = rows[2 * i].lanes, b = rows[2 * i + 1].lanes;
    pairs[i] = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  }
  const __m256 groups =
      _mm256_add_ps(_mm256_shuffle_ps(pairs[0], pairs[1], 0x44), _mm256_shuffle_ps(pairs[0], pairs[1], 0xEE));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(groups), _mm256_extractf128_ps(groups, 1)));
}
static inline bool any_equal(Vec a, Vec b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.lanes, b.lanes, _CMP_EQ_OQ)) != 0;
}

static inline bool any_above(Vec a, float bound) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.lanes, _mm256_set1_ps(bound), _CMP_GT_OQ)) != 0;
}

static constexpr float exp_lower_bound = -87.33654f;  // exp of it is the smallest normal number
static inline Vec clamp_below(Vec a, float bound) { return max(Vec(bound), a); }
static inline Vec round_to_even(Vec a) {
  return _mm256_round_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline Vec scale_by_power(Vec p, Vec n, Vec t) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.lanes), _mm256_set1_epi32(127));
  const __m256 scaled = _mm256_mul_ps(p.lanes, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  return _mm256_andnot_ps(_mm256_cmp_ps(t.lanes, _mm256_set1_ps(exp_lower_bound), _CMP_LT_OQ), scaled);
}

// Lane j of rows[i] and lane i of rows[j] change places.
static inline void transpose(Vec (&rows)[8]) {
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i].lanes, rows[i + 1].lanes);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i].lanes, rows[i + 1].lanes);
  }
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

// Loads and stores of whole vectors, and of the first `count` lanes.
static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.lanes); }
static inline void stream(float* p, Vec a) { _mm256_stream_ps(p, a.lanes); }

static inline Vec widen(bf16, __m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
static inline Vec widen(f16, __m128i halves) { return _mm256_cvtph_ps(halves); }

static inline __m128i narrow(bf16, Vec a) {
  const __m256i bits = _mm256_castps_si256(a.lanes);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.lanes, a.lanes, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 0x08);
  return _mm256_castsi256_si128(packed);
}
static inline __m128i narrow(f16, Vec a) {
  return _mm256_cvtps_ph(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <class T>
static inline Vec load(const T* p) {
  return widen(T{}, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <class T>
static inline Vec load(const T* p, int count, float fill) {
  float values[Vec::width];
  for (int i = 0; i < Vec::width; ++i) {
    values[i] = i < count ? to_float(p[i]) : fill;
  }
  return _mm256_loadu_ps(values);
}
template <class T>
static inline void store(T* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(T{}, a));
}
template <class T>
static inline void store(T* p, Vec a, int count) {
  float values[Vec::width];
  _mm256_storeu_ps(values, a.lanes);
  for (int i = 0; i < count; ++i) {
    from_float(values[i], p + i);
  }
}
template <class T>
static inline void stream(T* p, Vec a) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(T{}, a));
}

// 8 lanes of 32 bits.
struct Bits {
  __m256i lanes;
};

static inline Bits load_bits(const uint32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
static inline void store_bits(void* p, Bits a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lanes); }
static inline Bits low_halves(Bits a) { return {_mm256_and_si256(a.lanes, _mm256_set1_epi32(0xffff))}; }
static inline Bits high_halves(Bits a) { return {_mm256_srli_epi32(a.lanes, 16)}; }

// 8 lanes of 32 bits as math/random.h multiplies them: each in the low half of 64 bits, whose high half is of no
// meaning. Even and odd lanes are apart.
struct BlockLanes {
  static constexpr int width = 8;
  __m256i even, odd;

  BlockLanes(__m256i e, __m256i o) : even(e), odd(o) {}
  explicit BlockLanes(uint32_t all) : even(_mm256_set1_epi64x(all)), odd(even) {}

  static BlockLanes counting_from(uint32_t first) {
    const __m256i even = _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_set_epi64x(6, 4, 2, 0));
    return {even, _mm256_add_epi64(even, _mm256_set1_epi64x(1))};
  }

  void copy_to(Bits* out) const { out->lanes = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA); }
};

static inline BlockLanes operator^(BlockLanes a, BlockLanes b) {
  return {_mm256_xor_si256(a.even, b.even), _mm256_xor_si256(a.odd, b.odd)};
}

static inline void multiply(BlockLanes a, uint32_t constant, BlockLanes* high, BlockLanes* low) {
  const __m256i factor = _mm256_set1_epi64x(constant);
  *low = {_mm256_mul_epu32(a.even, factor), _mm256_mul_epu32(a.odd, factor)};
  *high = {_mm256_srli_epi64(low->even, 32), _mm256_srli_epi64(low->odd, 32)};
}

// The rule is round_stochastically of math/random.h; the low 16 bits of each lane of `random` are used.
static inline __m128i narrow_stochastically(Vec a, Bits random) {
  const __m256i bits = _mm256_castps_si256(a.lanes);
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  const __m256i rounded = _mm256_add_epi32(bits, low_halves(random).lanes);
  const __m256i overflown = _mm256_cmpeq_epi32(_mm256_and_si256(rounded, exponent), exponent);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.lanes, a.lanes, _CMP_UNORD_Q));
  const __m256i beyond = _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent);
  __m256i result = _mm256_blendv_epi8(rounded, bits, _mm256_or_si256(overflown, beyond));
  result = _mm256_blendv_epi8(result, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan);
  const __m256i wide = _mm256_srli_epi32(result, 16);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 0x08));
}
static inline void store_stochastically(bf16* p, Vec a, Bits random) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_stochastically(a, random));
}
static inline void store_stochastically(bf16* p, Vec a, Bits random, int count) {
  bf16 values[Vec::width];
  store_stochastically(values, a, random);
  std::memcpy(p, values, static_cast<size_t>(count) * sizeof(bf16));
}

// Lanes whose 16 bits of `halves`, as a number, are above limit (-1 to 65535); 0 elsewhere.
static inline Vec keep_above(Vec a, const uint16_t* halves, int limit) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
  return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_set1_epi32(limit))), a.lanes);
}

}  // namespace avx2
}  // namespace pyseq
