#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/dropout.h"
#include "cpu/isa.h"
#include "cpu/layer_norm.h"
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

template <class T>
std::vector<T> numbers(int64_t count, int64_t step) {
  std::vector<T> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    from_float(static_cast<float>((i * step) % 17 - 8) / 8.0f, &values[static_cast<size_t>(i)]);
  }
  return values;
}

// Memory ends with the last element, so that the address sanitizer sees a vector that reaches too far.
template <class T>
void check_dropout(DType dtype, int64_t count, bool adds) {
  const Dropout rule = dropout_of(0.3, 42);
  const auto x = numbers<T>(count, 5), residual = numbers<T>(count, 3);
  std::vector<T> out(static_cast<size_t>(count));
  dropout(x.data(), adds ? residual.data() : nullptr, out.data(), dtype, count, rule, 2);
  for (size_t i = 0; i < out.size(); ++i) {
    const float kept = dropped(rule, to_float(x[i]), random_half(rule.stream, i));
    T expected;
    from_float(adds ? kept + to_float(residual[i]) : kept, &expected);
    CHECK(to_float(out[i]) == to_float(expected));
  }
}

// Rows of layer norm, and its gradients, against sums in double.
template <class T>
void check_layer_norm(DType dtype, int64_t rows, int64_t cols) {
  const auto size = static_cast<size_t>(rows * cols);
  const auto x = numbers<T>(rows * cols, 5), residual = numbers<T>(rows * cols, 3), grad = numbers<T>(rows * cols, 7);
  const auto weight = numbers<float>(cols, 11), bias = numbers<float>(cols, 13);
  const LayerNormRows shape{dtype, rows, cols, weight.data(), bias.data(), dropout_of(0.3, 42)};
  std::vector<T> y(size), z(size), grad_x(size), grad_residual(size);
  std::vector<float> mean(static_cast<size_t>(rows)), rstd(mean.size()), grad_weight(weight.size()),
      grad_bias(weight.size());
  std::vector<float> partial(static_cast<size_t>(layer_norm_chunks(rows).count * 2 * cols));
  layer_norm_forward(shape, {x.data(), residual.data(), 1e-5, y.data(), z.data(), mean.data(), rstd.data()}, 2);
  layer_norm_backward(shape,
                      {grad.data(), nullptr, z.data(), mean.data(), rstd.data(), grad_residual.data(), grad_x.data()},
                      partial.data(), grad_weight.data(), grad_bias.data(), 2);
  const double rounding = dtype == DType::f32 ? 1e-5 : dtype == DType::bf16 ? 2e-2 : 3e-3;
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0.0, squares = 0.0;
    for (int64_t c = 0; c < cols; ++c) {
      sum += to_float(z[static_cast<size_t>(r * cols + c)]);
    }
    for (int64_t c = 0; c < cols; ++c) {
      const double d = to_float(z[static_cast<size_t>(r * cols + c)]) - sum / static_cast<double>(cols);
      squares += d * d;
    }
    const double deviation = std::sqrt(squares / static_cast<double>(cols) + 1e-5);
    for (int64_t c = 0; c < cols; ++c) {
      const auto i = static_cast<size_t>(r * cols + c), column = static_cast<size_t>(c);
      const double normal = (to_float(z[i]) - sum / static_cast<double>(cols)) / deviation;
      CHECK(std::fabs(to_float(y[i]) - (normal * weight[column] + bias[column])) <= rounding * (1.0 + std::fabs(normal)));
      const bool kept = static_cast<int>(random_half(shape.dropout.stream, i)) > shape.dropout.limit;
      CHECK(kept || to_float(grad_x[i]) == 0.0f);
      const double scaled = to_float(grad_residual[i]) * shape.dropout.scale;
      CHECK(!kept || std::fabs(to_float(grad_x[i]) - scaled) <= rounding * (std::fabs(scaled) + 1e-3));
    }
  }
}

}  // namespace

TEST(dropout_of_every_instruction_set) {
  for_every_instruction_set([] {
    for (int64_t count = 0; count < 300; count += count < 40 ? 1 : 37) {
      check_dropout<float>(DType::f32, count, count % 2 != 0);
      check_dropout<bf16>(DType::bf16, count, count % 2 == 0);
      check_dropout<f16>(DType::f16, count, count % 2 != 0);
    }
    check_dropout<float>(DType::f32, 40000, true);
  });
}

TEST(dropout_at_the_ends_of_probability) {
  CHECK(dropout_of(0.0, 1).limit == -1 && dropout_of(1e-6, 1).limit == -1 && dropout_of(1.0, 1).limit == 65535);
  for_every_instruction_set([] {
    const std::vector<float> x(100, infinity);
    std::vector<float> out(100, 1.0f);
    dropout(x.data(), nullptr, out.data(), DType::f32, 100, dropout_of(1.0, 1), 1);
    for (const float value : out) {
      CHECK(value == 0.0f);
    }
  });
}

TEST(layer_norm_of_every_instruction_set) {
  for_every_instruction_set([] {
    for (const int64_t cols : {1, 2, 5, 16, 17, 33, 128, 130, 1025}) {
      check_layer_norm<float>(DType::f32, 3, cols);
      check_layer_norm<bf16>(DType::bf16, 35, cols);
      check_layer_norm<f16>(DType::f16, 2, cols);
    }
    check_layer_norm<float>(DType::f32, 0, 7);
  });
}
