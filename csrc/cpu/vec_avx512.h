// 16 lanes of AVX-512, with or without products of bf16. See cpu/vec.h.
#pragma once

// GCC 12 takes the deliberately undefined operands inside these intrinsics for mistakes (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cstdint>

#include "cpu/dtype.h"

#if defined(__AVX512BF16__)
#define PYSEQ_ISA avx512bf16
#else
#define PYSEQ_ISA avx512
#endif

namespace pyseq {
namespace PYSEQ_ISA {

struct Vec {
  static constexpr int width = 16;
  __m512 lanes;

  Vec() = default;
  Vec(__m512 l) : lanes(l) {}
  explicit Vec(float all) : lanes(_mm512_set1_ps(all)) {}
};

static inline Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.lanes, b.lanes); }
static inline Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.lanes, b.lanes); }
static inline Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.lanes, b.lanes); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.lanes, b.lanes, c.lanes); }

// Where either is nan, the result is b.
static inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a.lanes, b.lanes); }

// Where either is nan, the result is nan.
static inline Vec larger(Vec a, Vec b) {
  const __m512 max = _mm512_max_ps(a.lanes, b.lanes);
  return _mm512_mask_mov_ps(max, _mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_UNORD_Q), a.lanes);
}
static inline Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.lanes, b.lanes); }
static inline Vec root(Vec a) { return _mm512_sqrt_ps(a.lanes); }

// A sum of squares in fp64.
struct SquareSum {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();

  void add(Vec a) {
    const __m512d first = _mm512_cvtps_pd(_mm512_castps512_ps256(a.lanes));
    const __m512d second = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.lanes, 1));
    low = _mm512_fmadd_pd(first, first, low);
    high = _mm512_fmadd_pd(second, second, high);
  }
  double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};

static inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.lanes); }
static inline float reduce_add(Vec a) { return _mm512_reduce_add_ps(a.lanes); }

// out[i] = the sum of the lanes of rows[i].
static inline void reduce_add(const Vec (&rows)[4], float* out) {
  __m512 pairs[2];  // in each group of four lanes: of one row, of the next, of one row, of the next
  for (int i = 0; i < 2; ++i) {
    const __m512 a = rows[2 * i].lanes, b = rows[2 * i + 1].lanes;
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  const __m512 groups =
      _mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x44), _mm512_shuffle_ps(pairs[0], pairs[1], 0xEE));
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(groups), _mm512_extractf32x8_ps(groups, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1)));
}
static inline bool any_equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.lanes, b.lanes, _CMP_EQ_OQ) != 0; }

static inline bool any_above(Vec a, float bound) {
  return _mm512_cmp_ps_mask(a.lanes, _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
}

static constexpr float exp_lower_bound = -120.0f;  // exp of it is 0 in fp32
static inline Vec clamp_below(Vec a, float bound) { return max(Vec(bound), a); }
static inline Vec round_to_even(Vec a) {
  return _mm512_roundscale_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline Vec scale_by_power(Vec p, Vec n, Vec) { return _mm512_scalef_ps(p.lanes, n.lanes); }

// Lane j of rows[i] and lane i of rows[j] change places.
static inline void transpose(Vec (&rows)[16]) {
  __m512 pairs[16], fours[16], eights[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i].lanes, rows[i + 1].lanes);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i].lanes, rows[i + 1].lanes);
  }
  for (int i = 0; i < 16; i += 4) {
    fours[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    fours[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  // Lane group g of fours[4 * k + i] has column 4 * g + i of rows 4 * k to 4 * k + 3.
  for (int i = 0; i < 4; ++i) {
    eights[i] = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0x88);
    eights[i + 4] = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0xDD);
    eights[i + 8] = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0x88);
    eights[i + 12] = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm512_shuffle_f32x4(eights[i], eights[i + 8], 0x88);
    rows[i + 8] = _mm512_shuffle_f32x4(eights[i], eights[i + 8], 0xDD);
    rows[i + 4] = _mm512_shuffle_f32x4(eights[i + 4], eights[i + 12], 0x88);
    rows[i + 12] = _mm512_shuffle_f32x4(eights[i + 4], eights[i + 12], 0xDD);
  }
}

// Loads and stores of whole vectors, and of the first `count` lanes.
static inline __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1u); }

static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline Vec load(const float* p, int count, float fill) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(count), p);
}
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.lanes); }
static inline void store(float* p, Vec a, int count) { _mm512_mask_storeu_ps(p, first(count), a.lanes); }
static inline void stream(float* p, Vec a) { _mm512_stream_ps(p, a.lanes); }

static inline Vec widen(bf16, __m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
static inline Vec widen(f16, __m256i halves) { return _mm512_cvtph_ps(halves); }

static inline __m256i narrow(bf16, Vec a) {
  const __m512i bits = _mm512_castps_si512(a.lanes);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
static inline __m256i narrow(f16, Vec a) {
  return _mm512_cvtps_ph(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <class T>
static inline Vec load(const T* p) {
  return widen(T{}, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <class T>
static inline Vec load(const T* p, int count, float fill) {
  const Vec values = widen(T{}, _mm256_maskz_loadu_epi16(first(count), p));
  return _mm512_mask_mov_ps(_mm512_set1_ps(fill), first(count), values.lanes);
}
template <class T>
static inline void store(T* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(T{}, a));
}
template <class T>
static inline void store(T* p, Vec a, int count) {
  _mm256_mask_storeu_epi16(p, first(count), narrow(T{}, a));
}
template <class T>
static inline void stream(T* p, Vec a) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(T{}, a));
}

// 16 lanes of 32 bits.
struct Bits {
  __m512i lanes;
};

static inline Bits load_bits(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_bits(void* p, Bits a) { _mm512_storeu_si512(p, a.lanes); }
static inline Bits low_halves(Bits a) { return {_mm512_and_si512(a.lanes, _mm512_set1_epi32(0xffff))}; }
static inline Bits high_halves(Bits a) { return {_mm512_srli_epi32(a.lanes, 16)}; }

// 16 lanes of 32 bits as math/random.h multiplies them: each in the low half of 64 bits, whose high half is of no
// meaning. Even and odd lanes are apart.
struct BlockLanes {
  static constexpr int width = 16;
  __m512i even, odd;

  BlockLanes(__m512i e, __m512i o) : even(e), odd(o) {}
  explicit BlockLanes(uint32_t all) : even(_mm512_set1_epi64(all)), odd(even) {}

  static BlockLanes counting_from(uint32_t first) {
    const __m512i steps = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i even = _mm512_add_epi64(_mm512_set1_epi64(first), steps);
    return {even, _mm512_add_epi64(even, _mm512_set1_epi64(1))};
  }

  void copy_to(Bits* out) const { out->lanes = _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA); }
};

static inline BlockLanes operator^(BlockLanes a, BlockLanes b) {
  return {_mm512_xor_si512(a.even, b.even), _mm512_xor_si512(a.odd, b.odd)};
}

static inline void multiply(BlockLanes a, uint32_t constant, BlockLanes* high, BlockLanes* low) {
  const __m512i factor = _mm512_set1_epi64(constant);
  *low = {_mm512_mul_epu32(a.even, factor), _mm512_mul_epu32(a.odd, factor)};
  *high = {_mm512_srli_epi64(low->even, 32), _mm512_srli_epi64(low->odd, 32)};
}

// The rule is round_stochastically of math/random.h; the low 16 bits of each lane of `random` are used.
static inline __m256i narrow_stochastically(Vec a, Bits random) {
  const __m512i bits = _mm512_castps_si512(a.lanes);
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  const __m512i rounded = _mm512_add_epi32(bits, low_halves(random).lanes);
  const __mmask16 overflown = _mm512_cmpeq_epi32_mask(_mm512_and_si512(rounded, exponent), exponent);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.lanes, a.lanes, _CMP_UNORD_Q);
  const __mmask16 beyond = _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, exponent), exponent);
  __m512i result = _mm512_mask_mov_epi32(rounded, static_cast<__mmask16>(overflown | beyond), bits);
  result = _mm512_mask_or_epi32(result, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16));
}
static inline void store_stochastically(bf16* p, Vec a, Bits random) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_stochastically(a, random));
}
static inline void store_stochastically(bf16* p, Vec a, Bits random, int count) {
  _mm256_mask_storeu_epi16(p, first(count), narrow_stochastically(a, random));
}

// Lanes whose 16 bits of `halves`, as a number, are above limit (-1 to 65535); 0 elsewhere.
static inline Vec keep_above(Vec a, const uint16_t* halves, int limit) {
  const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves));
  const __m512i wide = _mm512_cvtepu16_epi32(numbers);
  return _mm512_maskz_mov_ps(_mm512_cmpgt_epi32_mask(wide, _mm512_set1_epi32(limit)), a.lanes);
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
