#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "cpu/cross_entropy.h"
#include "tests/check.h"

using namespace pyseq;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr int64_t ignored = -100;

template <class T>
constexpr DType dtype_of() {
  return std::is_same<T, float>::value ? DType::f32 : std::is_same<T, bf16>::value ? DType::bf16 : DType::f16;
}

// Rows of `cols` logits, `gap` apart, the first one `offset` into the memory. Nothing is allocated beyond the last row,
// so that the address sanitizer sees a vector that reaches too far.
template <class T>
struct Case {
  int64_t rows, cols, gap;
  size_t offset;
  std::vector<T> memory;
  std::vector<int64_t> target;

  Case(int64_t rows, int64_t cols, int64_t gap, size_t offset)
      : rows(rows), cols(cols), gap(gap), offset(offset), target(static_cast<size_t>(rows)) {
    std::mt19937 random(static_cast<unsigned>(cols));
    std::normal_distribution<float> normal(0.0f, 2.0f);
    memory.resize(offset + static_cast<size_t>((rows - 1) * (cols + gap) + cols));
    for (T& value : memory) {
      from_float(normal(random), &value);
    }
    for (int64_t r = 0; r < rows; ++r) {
      target[static_cast<size_t>(r)] = r == 1 ? ignored : static_cast<int64_t>(random()) % cols;
    }
  }

  double at(int64_t row, int64_t col) const {
    return to_float(memory[offset + static_cast<size_t>(row * (cols + gap) + col)]);
  }

  CrossEntropyInput input(const LossRule& weights) const {
    return {memory.data() + offset, dtype_of<T>(), rows, cols, cols + gap, target.data(), ignored, weights};
  }
};

template <class T>
void check_case(const Case<T>& c, double smoothing) {
  const double each = c.cols > 1 ? smoothing / static_cast<double>(c.cols - 1) : 0.0;
  const LossRule weights{c.cols > 1 ? 1.0 - smoothing - each : 1.0, each};
  const auto input = c.input(weights);
  const auto rows = static_cast<size_t>(c.rows);
  std::vector<float> loss(rows), nll(rows), stats(2 * rows), grad_loss(rows, 2.0f);
  std::vector<uint8_t> correct(rows);
  std::vector<T> grad(rows * static_cast<size_t>(c.cols));
  CHECK(first_bad_target(input) == -1);
  cross_entropy_forward(input, {loss.data(), nll.data(), correct.data(), stats.data()}, 2);
  cross_entropy_backward(input, grad_loss.data(), stats.data(), {grad.data(), c.cols}, 2);

  const double rounding = dtype_of<T>() == DType::f32 ? 1e-6 : dtype_of<T>() == DType::bf16 ? 8e-3 : 1e-3;
  for (int64_t r = 0; r < c.rows; ++r) {
    const auto i = static_cast<size_t>(r);
    const int64_t y = c.target[i];
    const T* row_grad = grad.data() + r * c.cols;
    if (y == ignored) {
      CHECK(loss[i] == 0.0f && nll[i] == 0.0f && correct[i] == 0);
      for (int64_t v = 0; v < c.cols; ++v) {
        CHECK(to_float(row_grad[v]) == 0.0f);
      }
      continue;
    }
    double sum = 0.0, smooth = 0.0;
    for (int64_t v = 0; v < c.cols; ++v) {
      sum += std::exp(c.at(r, v));
    }
    for (int64_t v = 0; v < c.cols; ++v) {
      smooth += std::log(sum) - c.at(r, v);
    }
    const double expected = weights.nll * (std::log(sum) - c.at(r, y)) + weights.smooth * smooth;
    CHECK(std::fabs(loss[i] - expected) <= 1e-6 * (1.0 + expected));
    for (int64_t v = 0; v < c.cols; ++v) {
      const double exact = 2.0 * (std::exp(c.at(r, v)) / sum - weights.smooth - (v == y ? weights.nll : 0.0));
      CHECK(std::fabs(to_float(row_grad[v]) - exact) <= rounding * std::fabs(exact) + 5e-7);
    }
  }
}

// The losses and the gradient at once are those of the two passes, also where the gradient takes the logits' place.
template <class T>
void check_at_once(const Case<T>& c, const LossRule& rule, bool weighted) {
  const std::vector<float> class_weights(static_cast<size_t>(c.cols), 0.75f);
  CrossEntropyInput input = c.input(rule);
  input.class_weights = weighted ? class_weights.data() : nullptr;
  const auto rows = static_cast<size_t>(c.rows);
  std::vector<float> loss(rows), nll(rows), stats(2 * rows), loss2(rows), weight(rows, 2.0f);
  std::vector<uint8_t> correct(rows);
  std::vector<T> grad(rows * static_cast<size_t>(c.cols)), at_once(grad.size());
  cross_entropy_forward(input, {loss.data(), nll.data(), correct.data(), stats.data()}, 2);
  cross_entropy_backward(input, weight.data(), stats.data(), {grad.data(), c.cols}, 2);
  const float two = 2.0f;
  cross_entropy_loss_and_gradient(input, &two, 0, {loss2.data(), nll.data(), correct.data(), stats.data()},
                                  {at_once.data(), c.cols}, 2);
  std::vector<T> memory = c.memory;
  input.logits = memory.data() + c.offset;
  cross_entropy_loss_and_gradient(input, weight.data(), 1, {loss.data(), nll.data(), correct.data(), stats.data()},
                                  {memory.data() + c.offset, c.cols + c.gap}, 1);
  CHECK(loss == loss2);
  const double rounding = dtype_of<T>() == DType::f32 ? 1e-6 : dtype_of<T>() == DType::bf16 ? 8e-3 : 1e-3;
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t v = 0; v < c.cols; ++v) {
      const double twice = to_float(grad[static_cast<size_t>(r * c.cols + v)]);
      const double once = to_float(at_once[static_cast<size_t>(r * c.cols + v)]);
      const double in_place = to_float(memory[c.offset + static_cast<size_t>(r * (c.cols + c.gap) + v)]);
      CHECK(once == in_place);
      CHECK(std::fabs(once - twice) <= rounding * std::fabs(twice) + 5e-7);
    }
  }
}

template <class T>
void check_sizes() {
  for (int64_t cols = 1; cols < 150; ++cols) {
    const Case<T> c(4, cols, cols % 3, static_cast<size_t>(cols % 5));
    check_case(c, cols % 2 ? 0.1 : 0.0);
    check_at_once(c, {0.9, 0.1 / static_cast<double>(cols)}, false);
    check_at_once(c, {0.9, 0.1 / static_cast<double>(cols), 1e-3, cols % 2 ? 5.0f : 0.0f}, cols % 3 == 0);
  }
  for (const int64_t cols : {2047, 2048, 2049, 4100}) {
    check_case(Case<T>(3, cols, 1, 1), 0.1);
    check_at_once(Case<T>(5, cols, 1, 1), {0.9, 0.1 / static_cast<double>(cols)}, false);
  }
  check_case(Case<T>(2100, 2111, 0, 1), 0.1);  // beyond 16 MiB in fp32: streaming stores
}

}  // namespace

TEST(cross_entropy_of_every_instruction_set) {
  for (int isa = static_cast<int>(best_isa()); isa >= 0; --isa) {
    CHECK(set_isa(static_cast<Isa>(isa)));
    check_sizes<float>();
    check_sizes<bf16>();
    check_sizes<f16>();
  }
  CHECK(set_isa(best_isa()));
}

TEST(cross_entropy_of_targets_out_of_range) {
  Case<float> c(4, 5, 0, 0);
  c.target = {0, ignored, 5, -1};
  CHECK(first_bad_target(c.input({1.0, 0.0})) == 2);
  c.target = {0, ignored, 4, -1};
  CHECK(first_bad_target(c.input({1.0, 0.0})) == 3);
}

TEST(cross_entropy_of_infinite_logits) {
  Case<float> c(3, 40, 0, 0);
  c.target = {3, 0, 39};
  for (int v = 0; v < 40; ++v) {
    c.memory[static_cast<size_t>(v)] = v == 3 ? 1.0f : -infinity;  // a certain row
    c.memory[static_cast<size_t>(40 + v)] = -infinity;             // a row without a distribution
  }
  float loss[3], nll[3], stats[6], grad_loss[3] = {1.0f, 1.0f, 1.0f};
  uint8_t correct[3];
  std::vector<float> grad(3 * 40);
  const auto input = c.input({1.0, 0.0});
  cross_entropy_forward(input, {loss, nll, correct, stats}, 1);
  cross_entropy_backward(input, grad_loss, stats, {grad.data(), 40}, 1);
  CHECK(loss[0] == 0.0f && correct[0] == 1 && grad[3] == 0.0f && grad[4] == 0.0f);
  CHECK(std::isnan(loss[1]) && std::isnan(grad[40]));
  CHECK(std::isfinite(loss[2]) && std::isfinite(grad[119]));
}
