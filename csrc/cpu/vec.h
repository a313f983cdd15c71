// One vector of fp32 lanes, for the instruction set that the including file is compiled for.
//
// A file that ends in _avx512bf16.cpp, _avx512.cpp or _avx2.cpp gets that wrapper; any other defines PYSEQ_PORTABLE first.
// Each wrapper lives in a namespace of its own (PYSEQ_ISA), and so must what is built on it: no two instruction sets share
// a symbol.
#pragma once

#if defined(PYSEQ_PORTABLE)
#include "cpu/vec_portable.h"
#elif defined(__AVX512F__)
#include "cpu/vec_avx512.h"
#elif defined(__AVX2__)
#include "cpu/vec_avx2.h"
#else
#error "define PYSEQ_PORTABLE, or compile for AVX2 or AVX-512"
#endif

namespace pyseq {
namespace PYSEQ_ISA {

// exp(t) for t <= 0, to about 1 ulp; nan stays nan, what is too small for a normal number is 0 (AVX-512: gradually).
// Cody and Waite's reduction t = n ln 2 + r with |r| <= ln(2)/2, and a minimax polynomial for exp(r).
static inline Vec exp_nonpositive(Vec t) {
  const Vec clamped = clamp_below(t, exp_lower_bound);
  const Vec n = round_to_even(clamped * Vec(1.44269504f));
  Vec r = fma(n, Vec(-0.693359375f), clamped);  // few enough bits that n times it is exact
  r = fma(n, Vec(2.12194440e-4f), r);
  Vec p = Vec(0x1.6a23d0p-10f);
  p = fma(p, r, Vec(0x1.123a20p-7f));
  p = fma(p, r, Vec(0x1.5558f2p-5f));
  p = fma(p, r, Vec(0x1.555492p-3f));
  p = fma(p, r, Vec(0x1.fffffcp-2f));
  p = fma(p * r, r, r) + Vec(1.0f);
  return scale_by_power(p, n, t);
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
