#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "tests/check.h"

using namespace pyseq;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

void for_every_instruction_set(void (*check)()) {
  for (int isa = static_cast<int>(best_isa()); isa >= 0; --isa) {
    CHECK(set_isa(static_cast<Isa>(isa)));
    check();
  }
  CHECK(set_isa(best_isa()));
}

float number(int64_t i) { return static_cast<float>(i * 7 % 17 - 8) / 8.0f; }

// A matrix in memory of its own that ends with the last element, so that the address sanitizer sees a vector that reaches
// too far.
struct Matrix {
  std::vector<float> memory;
  StridedMatrix view;

  Matrix(int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride, int64_t seed) {
    const bool empty = rows == 0 || cols == 0;
    memory.resize(static_cast<size_t>(empty ? 0 : (rows - 1) * row_stride + (cols - 1) * col_stride + 1));
    for (size_t i = 0; i < memory.size(); ++i) {
      memory[i] = number(static_cast<int64_t>(i) * seed + seed);
    }
    view = {memory.data(), row_stride, col_stride};
  }
  double operator()(int64_t i, int64_t j) const {
    return memory[static_cast<size_t>(i * view.row_stride + j * view.col_stride)];
  }
};

enum class Order { rows, cols, every_other };

Matrix matrix(int64_t rows, int64_t cols, Order order, int64_t seed) {
  switch (order) {
    case Order::rows:
      return {rows, cols, cols + seed % 2, 1, seed};
    case Order::cols:
      return {rows, cols, 1, rows + seed % 2, seed};
    default:
      return {rows, cols, 2 * cols, 2, seed};
  }
}

// All numbers are multiples of 1/64 and small: sums are exact, whatever their order.
void check_product(int64_t rows, int64_t cols, int64_t depth, Order of_a, Order of_b, bool accumulate, bool bias,
                   bool relu, int threads) {
  const Matrix a = matrix(rows, depth, of_a, 5), b = matrix(depth, cols, of_b, 4);
  std::vector<float> biases(static_cast<size_t>(bias ? cols : 0));
  for (size_t j = 0; j < biases.size(); ++j) {
    biases[j] = number(static_cast<int64_t>(j) * 3);
  }
  const int64_t stride = cols + 3;
  std::vector<float> c(static_cast<size_t>(rows == 0 ? 0 : (rows - 1) * stride + cols), 0.25f);
  std::vector<float> sums(static_cast<size_t>(rows), 0.5f);
  gemm({rows, cols, depth, a.view, b.view, c.data(), stride, accumulate, bias ? biases.data() : nullptr, relu,
        relu ? nullptr : sums.data()},
       threads);
  for (int64_t i = 0; i < rows; ++i) {
    double of_a = accumulate || relu || cols == 0 ? 0.5 : 0.0;
    for (int64_t k = 0; k < depth && !relu && cols > 0; ++k) {
      of_a += a(i, k);
    }
    CHECK(sums[static_cast<size_t>(i)] == of_a);
    for (int64_t j = 0; j < cols; ++j) {
      double sum = (accumulate ? 0.25 : 0.0) + (bias ? biases[static_cast<size_t>(j)] : 0.0f);
      for (int64_t k = 0; k < depth; ++k) {
        sum += a(i, k) * b(k, j);
      }
      CHECK(c[static_cast<size_t>(i * stride + j)] == (relu ? std::fmax(sum, 0.0) : sum));
    }
    for (int64_t j = cols; j < stride && i < rows - 1; ++j) {
      CHECK(c[static_cast<size_t>(i * stride + j)] == 0.25f);  // between rows
    }
  }
}

}  // namespace

// One less than, equal to and one more than tiles (6, 12; 8, 16, 32), chains and blocks of the depth (192, 576).
TEST(gemm_of_every_size_and_order) {
  for_every_instruction_set([] {
    const int64_t sizes[] = {0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 31, 33, 100};
    const Order orders[] = {Order::rows, Order::cols, Order::every_other};
    int turn = 0;
    for (const int64_t rows : sizes) {
      for (const int64_t cols : sizes) {
        for (const int64_t depth : {0, 1, 7, 8, 33}) {
          ++turn;
          check_product(rows, cols, depth, orders[turn % 3], orders[turn / 3 % 3], turn % 2 != 0, turn % 5 != 0,
                        turn % 7 == 0, 1 + turn % 4);
        }
      }
    }
  });
}

TEST(gemm_of_many_blocks) {
  for_every_instruction_set([] {
    for (const Order of_a : {Order::rows, Order::cols, Order::every_other}) {
      for (const Order of_b : {Order::rows, Order::cols, Order::every_other}) {
        for (const int64_t depth : {191, 193, 576, 577, 1153}) {
          check_product(37, 75, depth, of_a, of_b, true, true, false, 1);
        }
        check_product(200, 41, 20, of_a, of_b, false, true, true, 3);   // more rows than a block has
        check_product(13, 530, 250, of_a, of_b, true, false, true, 3);  // more columns
      }
      check_product(100, 530, 600, of_a, Order::rows, true, true, of_a == Order::rows, 1);  // more of everything
      for (const int64_t rows : {90, 96, 97}) {  // those of one block, whose copy is kept for all columns, or of two
        for (const Order of_b : {Order::rows, Order::cols}) {
          check_product(rows, 300, 400, of_a, of_b, true, true, false, 1);
        }
      }
      check_product(20, 140, 1700, of_a, Order::cols, true, true, false, 1);  // too deep a copy to be kept
    }
    check_product(50, 70, 1024, Order::rows, Order::rows, false, false, false, 1);
    for (const int threads : {1, 3, 20}) {  // pieces of the depth
      check_product(50, 70, 5000, Order::cols, Order::rows, threads == 1, false, false, threads);
    }
  });
}

TEST(gemm_keeps_inf_and_nan) {
  for_every_instruction_set([] {
    for (const bool relu : {false, true}) {
      Matrix a(7, 3, 3, 1, 1), b(3, 17, 17, 1, 2);
      a.memory = std::vector<float>(a.memory.size(), 1.0f);
      b.memory = std::vector<float>(b.memory.size(), 1.0f);
      a.memory[3] = infinity;               // row 1
      a.memory[6] = std::nanf("");          // row 2
      a.memory[9] = infinity;               // row 3 ...
      b.memory[5] = 0.0f;                   // ... and column 5
      std::vector<float> c(7 * 17);
      gemm({7, 17, 3, {a.memory.data(), 3, 1}, {b.memory.data(), 17, 1}, c.data(), 17, false, nullptr, relu}, 1);
      for (size_t i = 0; i < 7; ++i) {
        for (size_t j = 0; j < 17; ++j) {
          const float value = c[i * 17 + j];
          const bool infinite = i == 1 || i == 3;
          CHECK(i == 2 || (infinite && j == 5) ? std::isnan(value)
                                               : value == (infinite ? infinity : j == 5 ? 2.0f : 3.0f));
        }
      }
    }
  });
}
