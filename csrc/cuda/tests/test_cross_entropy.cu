#include <cmath>

#include "cuda/cross_entropy.h"
#include "cuda/tests/device_memory.h"
#include "cuda/tests/dtypes.h"

using namespace pyseq;

namespace {

constexpr int64_t rows = 5;
constexpr int64_t ignored_row = 1;

struct Case {
  int64_t cols;
  int dtype;
  size_t shift;  // elements before the first row
  double smoothing;
  float soft_cap;
};

// Bytes of a matrix. The end is one of an aligned word, as in every allocation.
size_t bytes_of(const Case& c) {
  return (static_cast<size_t>(rows * c.cols) * element_size(c.dtype) + c.shift * element_size(c.dtype) + 3) / 4 * 4 -
         c.shift * element_size(c.dtype);
}

struct Oracle {
  std::vector<double> loss, grad;
};

// In double, of the logits as they are stored: row r weighs r + 1.
Oracle oracle(const std::vector<uint8_t>& logits, const std::vector<int64_t>& target, const Case& c) {
  Oracle result{std::vector<double>(rows, 0.0), std::vector<double>(static_cast<size_t>(rows * c.cols), 0.0)};
  const double each = c.smoothing / static_cast<double>(c.cols), cap = c.soft_cap;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> z;
    double exp_sum = 0.0;
    for (int64_t v = 0; v < c.cols; ++v) {
      const double x = number_at(logits, c.dtype, static_cast<size_t>(r * c.cols + v));
      z.push_back(cap == 0.0 ? x : cap * std::tanh(x / cap));
      exp_sum += std::exp(z.back());
    }
    for (int64_t v = 0; v < c.cols && r != ignored_row; ++v) {
      const auto i = static_cast<size_t>(v);
      const double q = each + (v == target[static_cast<size_t>(r)] ? 1.0 - c.smoothing : 0.0);
      const double slope = cap == 0.0 ? 1.0 : 1.0 - z[i] / cap * (z[i] / cap);
      result.loss[static_cast<size_t>(r)] += q * (std::log(exp_sum) - z[i]);
      result.grad[static_cast<size_t>(r * c.cols) + i] =
          static_cast<double>(r + 1) * slope * (std::exp(z[i]) / exp_sum - q);
    }
  }
  return result;
}

void check_numbers(const std::vector<uint8_t>& got, int dtype, const std::vector<double>& want, double tolerance) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(number_at(got, dtype, i) - want[i]);
    CHECK(error <= tolerance * (std::fabs(want[i]) + 1e-3));
  }
}

void check_case(const Case& c) {
  Numbers numbers(static_cast<uint32_t>(c.cols));
  std::vector<uint8_t> host(bytes_of(c));
  std::vector<uint8_t> targets(rows * sizeof(int64_t)), weights(rows * sizeof(float));
  std::vector<int64_t> target;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t v = 0; v < c.cols; ++v) {
      set_number(&host, c.dtype, static_cast<size_t>(r * c.cols + v), 2.0 * numbers.next());
    }
    target.push_back(r == ignored_row ? -100 : (r * 7919 + c.cols - 1) % c.cols);
    set_element(&targets, static_cast<size_t>(r), target.back());
    set_element(&weights, static_cast<size_t>(r), static_cast<float>(r + 1));
  }
  const Oracle want = oracle(host, target, c);
  const size_t shift = c.shift * element_size(c.dtype);
  const DeviceMemory target_memory(targets), weight_memory(weights), loss(4 * rows), nll(4 * rows), correct(rows),
      stats(8 * rows);
  const LossRule rule{1.0 - c.smoothing, c.smoothing / static_cast<double>(c.cols), 0.0, c.soft_cap};
  const CudaRowResults results{loss.data<float>(), nll.data<float>(), correct.data<uint8_t>(), stats.data<float>()};
  const RowWeighting weighting{weight_memory.data<const float>(), 1, 0.0f};
  const double tolerance = c.dtype == 0 ? 1e-5 : c.dtype == 1 ? 1.0 / 128 : 1.0 / 1024;
  for (const bool over_logits : {true, false}) {
    for (const bool at_once : {true, false}) {
      const DeviceMemory logits(host, shift), other(host.size());
      CudaCrossEntropy input{};
      input.logits = logits.data();
      input.dtype = c.dtype;
      input.rows = rows;
      input.cols = input.row_stride = c.cols;
      input.target = target_memory.data<const int64_t>();
      input.ignore_index = -100;
      input.rule = rule;
      const DeviceMemory& into = over_logits ? logits : other;
      const CudaGradient gradient{into.data(), c.cols};
      if (at_once) {
        CHECK_CUDA(cuda_cross_entropy_loss_and_gradient(input, weighting, results, gradient));
      } else {
        CHECK_CUDA(cuda_cross_entropy_loss(input, results));
        CHECK_CUDA(cuda_cross_entropy_gradient(input, stats.data<const float>(), weighting, gradient));
      }
      check_numbers(loss.read(), 0, want.loss, 1e-5);
      check_numbers(into.read(), c.dtype, want.grad, tolerance);
      const DeviceNumber<float> half(0.5f);
      CHECK_CUDA(cuda_cross_entropy_scale(input, half.data(), gradient));
      std::vector<double> halved = want.grad;
      for (double& value : halved) {
        value *= 0.5;
      }
      check_numbers(into.read(), c.dtype, halved, tolerance);
    }
  }
}

}  // namespace

// What a warp, a block and a cluster take, with rows that begin at any element.
TEST(cross_entropy_of_all_sizes) {
  for (const int64_t cols : {1, 7, 8, 33, 1000, 2049, 8192, 50257, 128257, 600001}) {
    for (int dtype = 0; dtype < 3; ++dtype) {
      for (const size_t shift : {0, 1}) {
        check_case({cols, dtype, shift, 0.0, 0.0f});
        check_case({cols, dtype, shift, 0.1, 0.0f});
      }
    }
  }
}

TEST(cross_entropy_with_a_soft_cap) {
  for (const int64_t cols : {5, 1001, 50257}) {
    for (int dtype = 0; dtype < 3; ++dtype) {
      check_case({cols, dtype, 3, 0.1, 2.5f});
    }
  }
}
