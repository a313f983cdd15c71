// Masters kept as bf16 and remainder, in vectors. The rule is that of math/remainder.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/vec.h"
#include "math/remainder.h"

namespace pyseq {
namespace PYSEQ_ISA {

typedef uint32_t Words __attribute__((vector_size(Vec::width * 4)));
typedef uint16_t Halves __attribute__((vector_size(Vec::width * 2)));

static inline Words load_halves(const void* p, int count) {
  Halves halves{};
  std::memcpy(&halves, p, static_cast<size_t>(count) * 2);
  return __builtin_convertvector(halves, Words);
}

static inline void store_halves(void* p, const Words& words, int count) {
  const Halves halves = __builtin_convertvector(words, Halves);
  std::memcpy(p, &halves, static_cast<size_t>(count) * 2);
}

static inline Vec load_some_master(const bf16* high, const uint16_t* low, int count) {
  const Words bits = join_master(SplitMaster<Words>{load_halves(high, count), load_halves(low, count)});
  Vec master(0.0f);
  std::memcpy(&master.lanes, &bits, sizeof bits);
  return master;
}

static inline void store_some_master(bf16* high, uint16_t* low, Vec master, int count) {
  Words bits;
  std::memcpy(&bits, &master.lanes, sizeof bits);
  const SplitMaster<Words> split = split_master(bits);
  store_halves(high, split.high, count);
  store_halves(low, split.low, count);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// (high - (low >> 15)) << 16 | low: high and low put together, low with its sign.
static inline Vec load_whole_master(const bf16* high, const uint16_t* low) {
  const __m256i top = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(high)));
  const __m256i rest = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(top, 16), rest));
}

// split_master of whole vectors, whose unsigned comparisons and two narrowings AVX2 does not have.
static inline __attribute__((always_inline)) void store_whole_master(bf16* high, uint16_t* low, Vec master) {
  const __m256i bits = _mm256_castps_si256(master.lanes);
  __m256i top = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x8000)), 16);
  __m256i rest = _mm256_blend_epi16(bits, _mm256_setzero_si256(), 0xaa);
  const __m256i zero_if_finite = _mm256_castps_si256(_mm256_sub_ps(master.lanes, master.lanes));
  if (__builtin_expect(!_mm256_testz_si256(zero_if_finite, zero_if_finite), 0)) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    const __m256i infinite = _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(master.lanes, master.lanes, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_and_si256(nan, _mm256_set1_epi32(0x400000)));
    top = _mm256_blendv_epi8(top, _mm256_srli_epi32(quiet, 16), infinite);
    rest = _mm256_andnot_si256(infinite, rest);
  }
  const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, rest), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm256_castsi256_si128(both));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm256_extracti128_si256(both, 1));
}
#else
static inline Vec load_whole_master(const bf16* high, const uint16_t* low) {
  return load_some_master(high, low, Vec::width);
}
static inline void store_whole_master(bf16* high, uint16_t* low, Vec master) {
  store_some_master(high, low, master, Vec::width);
}
#endif

// The first `count` masters; whole vectors are fast where the compiler sees that count is the width.
static inline Vec load_master(const bf16* high, const uint16_t* low, int count) {
  return count == Vec::width ? load_whole_master(high, low) : load_some_master(high, low, count);
}

static inline __attribute__((always_inline)) void store_master(bf16* high, uint16_t* low, Vec master, int count) {
  if (count == Vec::width) {
    store_whole_master(high, low, master);
  } else {
    store_some_master(high, low, master, count);
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
