#include "cpu/outer_products.h"

#include <cstdint>
#include <vector>

#include "cpu/isa.h"
#include "tests/check.h"

using namespace pyseq;

namespace {

// A multiple of 1/8, at most 1: a bf16, and sums of products of some thousands of them are exact.
float number(int64_t i) { return static_cast<float>(i * 7 % 17 - 8) / 8.0f; }

// In memory that ends with the last element, so that the address sanitizer sees a vector that reaches too far.
struct Rows {
  int64_t stride;
  std::vector<bf16> memory;

  Rows(int64_t rows, int64_t cols, int64_t gap, int64_t seed) : stride(cols + gap) {
    const int64_t count = rows == 0 || cols == 0 ? 0 : (rows - 1) * stride + cols;
    for (int64_t i = 0; i < count; ++i) {
      memory.push_back({static_cast<uint16_t>(bits_of(number(i * seed + seed)) >> 16)});
    }
  }
  double operator()(int64_t i, int64_t j) const { return to_float(memory[static_cast<size_t>(i * stride + j)]); }
};

void check_sum(int64_t rows, int64_t m, int64_t n, bool accumulate, int threads) {
  const Rows a(rows, m, 3, 5), b(rows, n, 1, 4);
  const int64_t stride = n + 2;
  std::vector<float> c(static_cast<size_t>(m == 0 ? 0 : (m - 1) * stride + n), 0.25f);
  outer_products({rows, m, n, a.memory.data(), a.stride, b.memory.data(), b.stride, c.data(), stride, accumulate},
                 threads);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = accumulate ? 0.25 : 0.0;
      for (int64_t k = 0; k < rows; ++k) {
        sum += a(k, i) * b(k, j);
      }
      CHECK(c[static_cast<size_t>(i * stride + j)] == sum);
    }
    for (int64_t j = n; j < stride && i < m - 1; ++j) {
      CHECK(c[static_cast<size_t>(i * stride + j)] == 0.25f);  // between rows
    }
  }
}

}  // namespace

TEST(outer_products_of_every_size) {
  if (!has_bf16_products()) {
    return;
  }
  int turn = 0;
  for (const int64_t rows : {0, 1, 2, 3, 31, 256, 257, 600}) {
    for (const int64_t m : {0, 1, 13, 14, 15, 29, 40}) {
      for (const int64_t n : {0, 1, 15, 16, 17, 31, 32, 33, 70}) {
        ++turn;
        check_sum(rows, m, n, turn % 2 != 0, 1 + turn % 4);
      }
    }
  }
  check_sum(300, 400, 100, true, 3);
}
