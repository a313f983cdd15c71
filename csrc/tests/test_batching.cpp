#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "data/batching.h"
#include "tests/check.h"

using pyseq::BatchLimits;

namespace {

// Exactly n ends are allocated, so that a batch too many is caught by the address sanitizer.
std::vector<int64_t> ends_of(const std::vector<int64_t>& num_tokens, const BatchLimits& limits) {
  std::vector<int64_t> ends(num_tokens.size());
  const auto n = static_cast<int64_t>(num_tokens.size());
  const auto batches = pyseq::batch_by_size(num_tokens.data(), n, limits, ends.data());
  CHECK(batches.too_long == -1);
  ends.resize(batches.count);
  return ends;
}

}  // namespace

TEST(batching_closes_at_the_last_legal_size) {
  CHECK(ends_of({3, 3, 3, 3, 3}, {9, 0, 1}) == (std::vector<int64_t>{3, 5}));
  CHECK(ends_of({3, 3, 3, 3, 3, 3, 3}, {18, 0, 4}) == (std::vector<int64_t>{4, 7}));
  CHECK(ends_of(std::vector<int64_t>(11, 1), {0, 0, 8}) == (std::vector<int64_t>{8, 11}));
  CHECK(ends_of(std::vector<int64_t>(7, 1), {0, 3, 1}) == (std::vector<int64_t>{3, 6, 7}));
}

TEST(batching_tail_overflow_closes_two_batches) {
  // With the fourth sample (6 tokens) both batch + tail (5 x 6) and the tail alone (3 x 6) exceed 12.
  CHECK(ends_of({1, 1, 1, 1, 6}, {12, 0, 2}) == (std::vector<int64_t>{4, 5}));
  CHECK(ends_of({1, 1, 1, 1, 1, 1, 6}, {12, 0, 4}) == (std::vector<int64_t>{4, 6, 7}));
}

TEST(batching_packed_sums_the_tokens) {
  CHECK(ends_of({1, 2, 3, 4}, {6, 0, 1, true}) == (std::vector<int64_t>{3, 4}));
  CHECK(ends_of({1, 1, 1, 1, 2, 2, 6}, {9, 0, 4, true}) == (std::vector<int64_t>{4, 6, 7}));
}

TEST(batching_of_nothing) { CHECK(ends_of({}, {10, 10, 8}).empty()); }

TEST(batching_reports_a_sample_that_is_too_long) {
  const std::vector<int64_t> num_tokens{4, 4, 11, 4};
  std::vector<int64_t> ends(num_tokens.size());
  CHECK(pyseq::batch_by_size(num_tokens.data(), 4, {10, 0, 8}, ends.data()).too_long == 2);
}

TEST(batching_does_not_wrap_at_huge_limits) {
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (const bool packed : {false, true})
    CHECK(ends_of({huge, huge, huge}, {huge, 0, 1, packed}) == (std::vector<int64_t>{1, 2, 3}));
}

TEST(batching_keeps_every_limit) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 2000; ++round) {
    const BatchLimits limits{static_cast<int64_t>(20 + random() % 60), static_cast<int64_t>(random() % 20),
                             static_cast<int64_t>(1 + random() % 9), round % 2 == 1};
    std::vector<int64_t> num_tokens(random() % 200);
    for (auto& tokens : num_tokens) tokens = random() % 21;
    int64_t begin = 0;
    for (const int64_t end : ends_of(num_tokens, limits)) {
      const int64_t size = end - begin;
      CHECK(size > 0);
      CHECK(size < limits.multiple || size % limits.multiple == 0);
      CHECK(limits.max_sentences <= 0 || size <= limits.max_sentences);
      const int64_t *first = &num_tokens[begin], *last = num_tokens.data() + end;
      const int64_t padded = size * *std::max_element(first, last);
      CHECK((limits.packed ? std::accumulate(first, last, int64_t{0}) : padded) <= limits.max_tokens);
      begin = end;
    }
    CHECK(begin == static_cast<int64_t>(num_tokens.size()));
  }
}
