// Random numbers that depend on nothing but their place: Philox4x32 (Salmon et al. 2011, "Parallel random numbers: as
// easy as 1, 2, 3", section 3.3), for the host and the device, for single numbers and for vectors of them.
//
// A stream is an endless sequence of 32-bit words. Sixteen blocks of four words make a tile of 64: word i is number
// (i / 16) % 4 of block i / 64 * 16 + i % 16. So 16 neighbours in the stream are the same number of 16 blocks, which is
// what a vector of 16 lanes computes at once. A stream of 16-bit numbers is the halves of the words, low half first.
#pragma once

#include <cstdint>

#include "math/rule.h"

namespace pyseq {

// 2^64 seeds with 2^64 streams each.
struct RandomStream {
  uint64_t seed;
  uint64_t number;
};

static constexpr int philox_rounds = 10;  // the paper finds no flaw in 7 and recommends 10
static constexpr int random_tile_words = 64;

template <class U>
struct RandomBlock {
  U word[4];
};

// The 64-bit product of a and a constant. Vectors bring their own.
PYSEQ_RULE void multiply(uint32_t a, uint32_t constant, uint32_t* high, uint32_t* low) {
  const uint64_t product = static_cast<uint64_t>(a) * constant;
  *high = static_cast<uint32_t>(product >> 32);
  *low = static_cast<uint32_t>(product);
}

// U is uint32_t or a vector of them with multiply, operator^ and a constructor from one number for all lanes.
template <class U>
PYSEQ_RULE RandomBlock<U> philox(const RandomBlock<U>& counter, uint32_t key0, uint32_t key1) {
  RandomBlock<U> block = counter;
  for (int round = 0; round < philox_rounds; ++round) {
    U high0(0u), low0(0u), high1(0u), low1(0u);
    multiply(block.word[0], 0xD2511F53u, &high0, &low0);
    multiply(block.word[2], 0xCD9E8D57u, &high1, &low1);
    block = {{high1 ^ block.word[1] ^ U(key0), low1, high0 ^ block.word[3] ^ U(key1), low0}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return block;
}

// The block of a stream whose number is given by its halves.
template <class U>
PYSEQ_RULE RandomBlock<U> random_block(RandomStream stream, const U& low, const U& high) {
  const RandomBlock<U> counter{
      {low, high, U(static_cast<uint32_t>(stream.number)), U(static_cast<uint32_t>(stream.number >> 32))}};
  return philox(counter, static_cast<uint32_t>(stream.seed), static_cast<uint32_t>(stream.seed >> 32));
}

PYSEQ_RULE uint32_t random_word(RandomStream stream, uint64_t index) {
  const uint64_t block = index / 64 * 16 + index % 16;
  return random_block(stream, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32)).word[index / 16 % 4];
}

PYSEQ_RULE uint32_t random_half(RandomStream stream, uint64_t index) {
  return random_word(stream, index / 2) >> (index % 2 * 16) & 0xffffu;
}

// fp32 to bf16, both as their bits: up with the probability of the distance to the number below, given 16 random bits.
// Finite stays finite: where up would be infinity, down is taken. A nan stays a nan.
PYSEQ_RULE uint32_t round_stochastically(uint32_t bits, uint32_t random16) {
  const uint32_t exponent = 0x7f800000u;
  if ((bits & exponent) == exponent) {
    return (bits >> 16) | ((bits & 0x7fffffu) != 0 ? 0x40u : 0u);
  }
  const uint32_t rounded = bits + random16;
  return ((rounded & exponent) == exponent ? bits : rounded) >> 16;
}

}  // namespace pyseq
