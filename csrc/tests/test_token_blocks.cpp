#include <cstdint>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "data/token_blocks.h"
#include "tests/check.h"

using pyseq::BlockPosition;
using pyseq::BreakMode;
using pyseq::Slice;

namespace {

using Pairs = std::vector<std::pair<int64_t, int64_t>>;

std::vector<Slice> slices_of(const std::vector<int64_t>& sizes, BreakMode mode, int64_t block_size, int64_t sep = 1) {
  const auto n = static_cast<int64_t>(sizes.size());
  std::vector<Slice> slices(pyseq::block_capacity(sizes.data(), n, mode, block_size));
  slices.resize(pyseq::slice_indices(sizes.data(), n, mode, block_size, sep, slices.data()));
  return slices;
}

Pairs pairs_of(const std::vector<Slice>& slices) {
  Pairs pairs;
  for (const Slice& slice : slices) pairs.emplace_back(slice.begin, slice.end);
  return pairs;
}

}  // namespace

TEST(token_blocks_of_each_mode) {
  const std::vector<int64_t> sizes{4, 3, 1, 2, 9, 1, 1, 2};
  CHECK(pairs_of(slices_of(sizes, BreakMode::kNone, 10)) == (Pairs{{0, 10}, {10, 20}, {20, 23}}));
  CHECK(pairs_of(slices_of(sizes, BreakMode::kComplete, 8)) == (Pairs{{0, 8}, {8, 10}, {10, 19}, {19, 23}}));
  CHECK(pairs_of(slices_of(sizes, BreakMode::kCompleteDoc, 8)) == (Pairs{{0, 7}, {8, 10}, {10, 19}, {21, 23}}));
  CHECK(pairs_of(slices_of({2, 3}, BreakMode::kEos, 0)) == (Pairs{{0, 2}, {2, 5}}));
}

TEST(token_blocks_of_nothing) {
  for (const auto mode : {BreakMode::kNone, BreakMode::kComplete, BreakMode::kCompleteDoc, BreakMode::kEos})
    CHECK(slices_of({}, mode, 5).empty());
}

TEST(token_blocks_of_the_largest_block_size) {
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (const auto mode : {BreakMode::kNone, BreakMode::kComplete, BreakMode::kCompleteDoc})
    CHECK(pairs_of(slices_of({4, 3}, mode, huge)) == (Pairs{{0, 7}}));
}

TEST(token_blocks_know_their_sentences) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 1000; ++round) {
    std::vector<int64_t> sizes(1 + random() % 40), owner, offset;
    for (size_t i = 0; i < sizes.size(); ++i) {
      sizes[i] = random() % 7;
      for (int64_t k = 0; k < sizes[i]; ++k) {
        owner.push_back(static_cast<int64_t>(i));
        offset.push_back(k);
      }
    }
    const auto mode = static_cast<BreakMode>(random() % 3);
    const auto slices = slices_of(sizes, mode, 1 + random() % 12);
    std::vector<BlockPosition> positions(slices.size());
    pyseq::block_to_dataset_index(sizes.data(), static_cast<int64_t>(sizes.size()), slices.data(),
                                  static_cast<int64_t>(slices.size()), positions.data());
    for (size_t i = 0; i < slices.size(); ++i) {
      CHECK(slices[i].begin < slices[i].end);
      CHECK(positions[i].first == owner[slices[i].begin]);
      CHECK(positions[i].offset == offset[slices[i].begin]);
      CHECK(positions[i].last == owner[slices[i].end - 1]);
    }
  }
}

TEST(token_blocks_without_tokens_lie_before_the_next_sentence) {
  const std::vector<int64_t> sizes{2, 0, 3};
  const std::vector<Slice> slices{{2, 2}, {5, 5}};
  std::vector<BlockPosition> positions(2);
  pyseq::block_to_dataset_index(sizes.data(), 3, slices.data(), 2, positions.data());
  CHECK(positions[0].first == 2 && positions[0].offset == 0 && positions[0].last == 2);
  CHECK(positions[1].first == 2 && positions[1].offset == 3 && positions[1].last == 2);
}
