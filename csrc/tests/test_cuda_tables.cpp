#include <cstdint>
#include <vector>

#include "cuda/tables.h"
#include "tests/check.h"

using namespace pyseq;

TEST(norm_segments_are_merged_without_renumbering_packs) {
  // fp32: 8 elements are two packs of 16 bytes, 5 are two with an unfinished one.
  const std::vector<int64_t> together = {0x1000, 8, 0, 0x1020, 5, 0, 0x1034, 8, 0, 0x1034, 0, 0, 0x1054, 4, 1};
  const std::vector<int64_t> apart = {0x1000, 8, 0, 0x2020, 5, 0, 0x3034, 8, 0, 0x1034, 0, 0, 0x4050, 4, 1};
  std::vector<NormSegment> segments(5);
  const NormTable merged = norm_segments(together.data(), 5, segments.data());
  CHECK(merged.count == 3 && merged.packs == 7);
  CHECK(segments[0].numel == 13 && segments[0].first == 0 && segments[0].vector == 1);
  CHECK(segments[1].numel == 8 && segments[1].first == 4 && segments[1].vector == 0);  // after an unfinished pack
  CHECK(segments[2].numel == 4 && segments[2].first == 6 && segments[2].dtype == 1);
  const NormTable separate = norm_segments(apart.data(), 5, segments.data());
  CHECK(separate.count == 4 && separate.packs == 7);
  CHECK(segments[1].first == 2 && segments[2].first == 4 && segments[3].first == 6 && segments[3].vector == 1);
}

TEST(norm_segments_of_nothing) {
  const std::vector<int64_t> empty = {0, 0, 0};
  NormSegment segment;
  CHECK(norm_segments(nullptr, 0, nullptr).count == 0);
  CHECK(norm_segments(empty.data(), 1, &segment).packs == 0);
}

TEST(adam_segments_know_where_all_columns_are_aligned) {
  // bf16 parameters and gradients, fp32 moments: {columns, elements, key}
  const std::vector<int64_t> sizes = {2, 2, 4, 4, 4, 2};
  const std::vector<int64_t> table = {
      0x1000, 0x2000, 0x3000, 0x4000, 0, 0, adam_chunk + 1, 0,  // aligned
      0x1006, 0x200e, 0x300c, 0x401c, 0, 0, adam_chunk, 1,      // gradients after 1 element, parameters after 5
      0x100a, 0x200a, 0x3004, 0x4004, 0, 0, 10, 2,              // all after 3
      0x1002, 0x2000, 0x3000, 0x4000, 0, 0, 10, 3,              // never
      0x1000, 0x2000, 0x3000, 0x4000, 0x5004, 0, 10, 4,         // never, for amsgrad's column
  };
  std::vector<AdamSegment> segments(5);
  CHECK(adam_segments(table.data(), 5, sizes.data(), segments.data()) == 2 + 1 + 1 + 1 + 1);
  const int32_t heads[] = {0, -1, 3, -1, -1};
  const int64_t firsts[] = {0, 2, 3, 4, 5};
  for (int r = 0; r < 5; ++r) {
    CHECK(segments[r].head == heads[r] && segments[r].first == firsts[r] && segments[r].key == r);
  }
  CHECK(segments[4].max_exp_avg_sq == reinterpret_cast<void*>(0x5004) && segments[0].extra == nullptr);
}
