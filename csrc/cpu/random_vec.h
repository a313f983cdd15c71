// Tiles of random numbers in vectors, and stochastic rounding of vectors. The streams are those of math/random.h.
#pragma once

#include <cstdint>

#include "cpu/vec.h"
#include "math/random.h"

namespace pyseq {
namespace PYSEQ_ISA {

// A tile in the order of the stream: lane l of bits[i] is word i * Vec::width + l of the tile.
struct RandomTile {
  static constexpr int vectors = random_tile_words / Vec::width;
  Bits bits[vectors];
};

// Tile `number` of a stream: the words from number * 64 on.
static inline RandomTile random_tile(RandomStream stream, uint64_t number) {
  RandomTile tile;
  constexpr int blocks = BlockLanes::width;  // blocks at a time
  for (int first = 0; first < 16; first += blocks) {
    const uint64_t block = number * 16 + static_cast<uint64_t>(first);
    // No carry from the low half to the high one: a tile begins at a multiple of 16.
    const auto random = random_block(stream, BlockLanes::counting_from(static_cast<uint32_t>(block)),
                                     BlockLanes(static_cast<uint32_t>(block >> 32)));
    for (int word = 0; word < 4; ++word) {
      random.word[word].copy_to(tile.bits + (word * 16 + first) / Vec::width);
    }
  }
  return tile;
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
