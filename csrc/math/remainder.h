// An fp32 number (the master) as the bits of a bf16 number and 16 bits more (the remainder), for the host and the device,
// for single numbers and for vectors of them.
//
// The bf16 number is the master rounded to nearest, ties away from zero; the remainder is the master's low half. Its top
// bit says that the master was rounded up. (Ties to even could not be undone: 65,537 masters would share an even bf16.)
// Of a master with all exponent bits set the remainder is 0: inf stays inf, and nan a quiet nan. Rounded like a number,
// the nan 0x7fffffff would become -0.
#pragma once

#include <cstdint>

#include "math/rule.h"

namespace pyseq {

// U is uint32_t or a vector of them (a GCC vector type: its comparisons give masks, ?: selects by lane).
template <class U>
struct SplitMaster {
  U high;  // the bits of the bf16 number, in the low half
  U low;   // the remainder, in the low half
};

template <class U>
PYSEQ_RULE SplitMaster<U> split_master(U bits) {
  const U zero = bits ^ bits;
  const U exponent = zero + 0x7f800000u;
  const U rounded = (bits + 0x8000u) >> 16;
  const U quiet = (bits & 0x7fffffffu) > exponent ? (bits >> 16) | 0x40u : bits >> 16;
  const auto finite = (bits & exponent) != exponent;
  return {finite ? rounded : quiet, finite ? bits & 0xffffu : zero};
}

template <class U>
PYSEQ_RULE U join_master(SplitMaster<U> split) {
  return ((split.high - (split.low >> 15)) << 16) | split.low;
}

}  // namespace pyseq
