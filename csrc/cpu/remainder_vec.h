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

#if defined(__AVX2__) && !defined(__AVX512F__)
// The compiler widens these 8 numbers in two halves.
static inline Words load_whole_halves(const void* p) {
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
#else
static inline Words load_whole_halves(const void* p) { return load_halves(p, Vec::width); }
#endif

// The first `count` masters; whole vectors are fast where the compiler sees that count is the width.
static inline Vec load_master(const bf16* high, const uint16_t* low, int count) {
  const bool whole = count == Vec::width;
  const Words bits = join_master(SplitMaster<Words>{whole ? load_whole_halves(high) : load_halves(high, count),
                                                    whole ? load_whole_halves(low) : load_halves(low, count)});
  Vec master(0.0f);
  std::memcpy(&master.lanes, &bits, sizeof bits);
  return master;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Whole vectors of split_master, whose unsigned comparisons and two narrowings AVX2 does not have: halves are packed
// together.
static inline void store_whole_master(bf16* high, uint16_t* low, Vec master) {
  const __m256i bits = _mm256_castps_si256(master.lanes);
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  const __m256i infinite = _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(master.lanes, master.lanes, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_and_si256(nan, _mm256_set1_epi32(0x400000)));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_set1_epi32(0x8000));
  const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, infinite), 16);
  const __m256i rest = _mm256_andnot_si256(infinite, _mm256_and_si256(bits, _mm256_set1_epi32(0xffff)));
  const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, rest), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm256_castsi256_si128(both));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm256_extracti128_si256(both, 1));
}
#endif

static inline void store_master(bf16* high, uint16_t* low, Vec master, int count) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (count == Vec::width) {
    store_whole_master(high, low, master);
    return;
  }
#endif
  Words bits;
  std::memcpy(&bits, &master.lanes, sizeof bits);
  const SplitMaster<Words> split = split_master(bits);
  store_halves(high, split.high, count);
  store_halves(low, split.low, count);
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
