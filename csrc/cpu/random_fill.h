// Filling memory with random numbers; included once for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/random.h"
#include "cpu/random_vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

// use(words, first, count) for the pieces of [begin, begin + count), none across the edge of a tile: words[0] is word
// begin + first.
template <class Use>
static void for_each_tile(RandomStream stream, uint64_t begin, int64_t count, const Use& use) {
  uint32_t words[random_tile_words];
  for (int64_t done = 0; done < count;) {
    const uint64_t index = begin + static_cast<uint64_t>(done);
    const int64_t skip = static_cast<int64_t>(index % random_tile_words);
    const int64_t left = random_tile_words - skip;
    const int64_t here = left < count - done ? left : count - done;
    const RandomTile tile = random_tile(stream, index / random_tile_words);
    for (int i = 0; i < RandomTile::vectors; ++i) {
      store_bits(words + i * Vec::width, tile.bits[i]);
    }
    use(words + skip, done, here);
    done += here;
  }
}

static void fill_words(RandomStream stream, uint64_t begin, int64_t count, uint32_t* out) {
  for_each_tile(stream, begin, count, [&](const uint32_t* words, int64_t first, int64_t here) {
    std::memcpy(out + first, words, static_cast<size_t>(here) * sizeof *words);
  });
}

static void round_all(const float* values, RandomStream stream, uint64_t begin, int64_t count, bf16* out) {
  for_each_tile(stream, begin, count, [&](const uint32_t* words, int64_t first, int64_t here) {
    int64_t i = 0;
    for (; i + Vec::width <= here; i += Vec::width) {
      store_stochastically(out + first + i, load(values + first + i), load_bits(words + i));
    }
    if (i < here) {
      const int rest = static_cast<int>(here - i);
      Bits random = {};
      std::memcpy(&random.lanes, words + i, static_cast<size_t>(rest) * sizeof *words);
      store_stochastically(out + first + i, load(values + first + i, rest, 0.0f), random, rest);
    }
  });
}

RandomKernels random_kernels() { return {fill_words, round_all}; }

}  // namespace PYSEQ_ISA
}  // namespace pyseq
