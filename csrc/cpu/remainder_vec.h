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

// The first `count` masters; whole vectors are fast where the compiler sees that count is the width.
static inline Vec load_master(const bf16* high, const uint16_t* low, int count) {
  const Words bits = join_master(SplitMaster<Words>{load_halves(high, count), load_halves(low, count)});
  Vec master(0.0f);
  std::memcpy(&master.lanes, &bits, sizeof bits);
  return master;
}

static inline void store_master(bf16* high, uint16_t* low, Vec master, int count) {
  Words bits;
  std::memcpy(&bits, &master.lanes, sizeof bits);
  const SplitMaster<Words> split = split_master(bits);
  store_halves(high, split.high, count);
  store_halves(low, split.low, count);
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
