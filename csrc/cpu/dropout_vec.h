// Dropout of vectors, for the operations that it is part of.
#pragma once

#include <cstdint>

#include "cpu/random_vec.h"
#include "math/dropout.h"

namespace pyseq {
namespace PYSEQ_ISA {

// The random halves of some elements at a time.
class Halves {
 public:
  static constexpr int64_t most = 1024;  // elements: their halves stay in the first-level cache

  // Of elements [begin, begin + count), count <= most. Those of a whole vector from any of them on may be read.
  const uint16_t* of(RandomStream stream, int64_t begin, int64_t count) {
    const int64_t first = begin / tile, last = (begin + count + tile - 1) / tile;
    for (int64_t number = first; number < last; ++number) {
      const RandomTile words = random_tile(stream, static_cast<uint64_t>(number));
      uint16_t* out = halves_ + (number - first) * tile;
      for (int i = 0; i < RandomTile::vectors; ++i) {
        store_bits(out + i * 2 * Vec::width, words.bits[i]);  // the low half of a word is first in memory
      }
    }
    return halves_ + (begin - first * tile);
  }

 private:
  static constexpr int64_t tile = 2 * random_tile_words;
  alignas(64) uint16_t halves_[most + 2 * tile];
};

}  // namespace PYSEQ_ISA
}  // namespace pyseq
