#include "cpu/linear_top_candidates.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "tests/check.h"

using namespace pyseq;

namespace {

// Multiples of 1/8, at most 1, which bf16 holds exactly.
float number(int64_t i) { return static_cast<float>(i * i % 1009 % 17 - 8) / 8.0f; }

float weight(int64_t column, int64_t k) { return number(column * 31 + k * 7); }

// In memory that ends with the last panel.
std::vector<float> packed(int64_t columns, int64_t depth, bool bf16) {
  PackedLinear shape{nullptr, nullptr, depth, columns, bf16};
  std::vector<float> panels(static_cast<size_t>(shape.panel_count() * shape.words() * panel_width), 0.0f);
  for (int64_t column = 0; column < columns; ++column) {
    const int64_t panel = column / panel_width * shape.words() * panel_width + column % panel_width;
    for (int64_t word = 0; word < shape.words(); ++word) {
      float* place = &panels[static_cast<size_t>(panel + word * panel_width)];
      if (!bf16) {
        *place = weight(column, word);
        continue;
      }
      const uint32_t low = bits_of(weight(column, 2 * word)) >> 16;
      const uint32_t high = 2 * word + 1 < depth ? bits_of(weight(column, 2 * word + 1)) & 0xffff0000u : 0;
      const uint32_t pair = high | low;
      std::memcpy(place, &pair, sizeof pair);
    }
  }
  return panels;
}

void check_candidates(int64_t rows, int64_t depth, int64_t columns, bool bf16) {
  const std::vector<float> panels = packed(columns, depth, bf16);
  std::vector<float> x(static_cast<size_t>(rows * depth)), values(static_cast<size_t>(rows)), sums(values.size());
  std::vector<int64_t> found(values.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = number(static_cast<int64_t>(i) + 3);
  }
  const PackedLinear weights{panels.data(), nullptr, depth, columns, bf16};
  linear_top_candidates({x.data(), rows, weights, 1, nullptr, nullptr, 0, 0, values.data(), found.data(), sums.data()}, 2);
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<double> logits(static_cast<size_t>(columns), 0.0);
    double sum = 0.0;
    for (int64_t column = 0; column < columns; ++column) {
      for (int64_t k = 0; k < depth; ++k) {
        logits[static_cast<size_t>(column)] += static_cast<double>(x[static_cast<size_t>(row * depth + k)]) * weight(column, k);
      }
      sum += std::exp(logits[static_cast<size_t>(column)]);
    }
    const auto best = std::max_element(logits.begin(), logits.end());
    CHECK(found[static_cast<size_t>(row)] == best - logits.begin());
    CHECK(values[static_cast<size_t>(row)] == *best);
    CHECK(std::fabs(sums[static_cast<size_t>(row)] - std::log(sum)) < 1e-4);
  }
}

}  // namespace

TEST(linear_top_candidates_of_every_size) {
  for (int isa = static_cast<int>(best_isa()); isa >= 0; --isa) {
    CHECK(set_isa(static_cast<Isa>(isa)));
    for (const bool bf16 : {false, true}) {
      if (bf16 && !has_bf16_products()) {
        continue;
      }
      for (const int64_t rows : {1, 13, 14, 15, 61, 125}) {  // of tiles, and where panels are fetched ahead
        for (const int64_t depth : {1, 2, 15, 17, 33, 600}) {
          for (const int64_t columns : {1, 16, 17, 33, 48, 400}) {
            check_candidates(rows, depth, columns, bf16);
          }
        }
      }
      check_candidates(20, 1024, 40, bf16);  // rows that would collide in the cache
    }
  }
  CHECK(set_isa(best_isa()));
}
