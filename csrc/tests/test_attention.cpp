#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/attention.h"
#include "cpu/isa.h"
#include "tests/check.h"

using namespace pyseq;

namespace {

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

double keep_factor(const AttentionShape& shape, int64_t first, int64_t query, int64_t head, int64_t key) {
  const uint64_t place = attention_tile(shape, first, query, head, key) * 128 + query % 8 * 16 + key % 16;
  const bool kept = static_cast<int>(random_half(shape.dropout.stream, place)) > shape.dropout.limit;
  return kept ? shape.dropout.scale : 0.0;
}

// Self-attention of [tokens, 3 (key, value, query), heads, dim], without gaps. Memory ends with the last element, so that
// the address sanitizer sees a vector that reaches too far.
template <class T>
struct Problem {
  AttentionShape shape;
  std::vector<T> kvq, grad_out, out, grads;
  std::vector<float> log_sums;

  Problem(const AttentionShape& s, int64_t tokens)
      : shape(s), kvq(numbers<T>(tokens * 3 * s.heads * s.dim, 5)), grad_out(numbers<T>(tokens * s.heads * s.dim, 7)),
        out(grad_out.size()), grads(kvq.size()), log_sums(static_cast<size_t>(tokens * s.heads)) {}

  template <class Data, class Array>
  Heads<Data> part(Array& array, int64_t index) const {
    return {array.data() + index * shape.heads * shape.dim, 3 * shape.heads * shape.dim, shape.dim};
  }
  template <class Data, class Array>
  Heads<Data> whole(Array& array) const {
    return {array.data(), shape.heads * shape.dim, shape.dim};
  }

  void run() {
    attention_forward(shape,
                      {part<const void>(kvq, 2), part<const void>(kvq, 0), part<const void>(kvq, 1), whole<void>(out),
                       log_sums.data()},
                      2);
    attention_backward(shape,
                       {part<const void>(kvq, 2), part<const void>(kvq, 0), part<const void>(kvq, 1),
                        whole<const void>(out), whole<const void>(grad_out), log_sums.data(), part<void>(grads, 2),
                        part<void>(grads, 0), part<void>(grads, 1)},
                       2);
  }

  double at(int64_t token, int64_t part, int64_t head, int64_t d) const {
    return to_float(kvq[static_cast<size_t>(((token * 3 + part) * shape.heads + head) * shape.dim + d)]);
  }
  double grad_at(int64_t token, int64_t head, int64_t d) const {
    return to_float(grad_out[static_cast<size_t>((token * shape.heads + head) * shape.dim + d)]);
  }

  // Row `query` of a head of the segment [first, end): its output and the gradient of its query, in double.
  void check_row(int64_t first, int64_t end, int64_t query, int64_t head, double rounding) const {
    const int64_t seen = shape.causal ? query + 1 : end - first;
    std::vector<double> weights(static_cast<size_t>(seen)), grads_of(weights.size());
    double sum = 0.0, delta = 0.0;
    for (int64_t j = 0; j < seen; ++j) {
      double score = 0.0, grad = 0.0;
      for (int64_t d = 0; d < shape.dim; ++d) {
        score += at(first + query, 2, head, d) * at(first + j, 0, head, d);
        grad += grad_at(first + query, head, d) * at(first + j, 1, head, d);
      }
      sum += weights[static_cast<size_t>(j)] = std::exp(score * shape.scale);
      grads_of[static_cast<size_t>(j)] = grad * keep_factor(shape, first, query, head, j);
    }
    for (size_t j = 0; j < weights.size(); ++j) {
      weights[j] /= sum;
      delta += weights[j] * grads_of[j];
    }
    for (int64_t d = 0; d < shape.dim; ++d) {
      double expected = 0.0, gradient = 0.0;
      for (int64_t j = 0; j < seen; ++j) {
        const auto key = static_cast<size_t>(j);
        expected += weights[key] * keep_factor(shape, first, query, head, j) * at(first + j, 1, head, d);
        gradient += weights[key] * (grads_of[key] - delta) * shape.scale * at(first + j, 0, head, d);
      }
      const auto row = static_cast<size_t>(((first + query) * shape.heads + head) * shape.dim + d);
      const auto grad_row = static_cast<size_t>((((first + query) * 3 + 2) * shape.heads + head) * shape.dim + d);
      CHECK(std::fabs(to_float(out[row]) - expected) <= rounding);
      CHECK(std::fabs(to_float(grads[grad_row]) - gradient) <= 4.0 * rounding);
    }
  }
};

template <class T>
void check_attention(DType dtype, const std::vector<int32_t>& offsets, int64_t dim, bool causal) {
  const AttentionShape shape{dtype, static_cast<int64_t>(offsets.size()) - 1, 2, dim, offsets.data(), offsets.data(),
                             300, causal, 0.5f, dropout_of(0.3, 42)};
  Problem<T> problem(shape, offsets.back());
  problem.run();
  const double rounding = dtype == DType::f32 ? 1e-5 : dtype == DType::bf16 ? 2e-2 : 3e-3;
  for (size_t b = 0; b + 1 < offsets.size(); ++b) {
    for (int64_t query = 0; query < offsets[b + 1] - offsets[b]; ++query) {
      problem.check_row(offsets[b], offsets[b + 1], query, query % 2, rounding);
    }
  }
}

}  // namespace

TEST(attention_of_every_instruction_set) {
  for_every_instruction_set([] {
    for (const int64_t dim : {1, 5, 16, 20, 33}) {
      for (const bool causal : {false, true}) {
        check_attention<float>(DType::f32, {0, 1, 1, 3, 8, 25, 58}, dim, causal);
        check_attention<bf16>(DType::bf16, {0, 7, 40}, dim, causal);
        check_attention<f16>(DType::f16, {0, 15, 32}, dim, causal);
      }
    }
    check_attention<float>(DType::f32, {0, 270}, 8, true);
    check_attention<float>(DType::f32, {0, 270}, 8, false);
    check_attention<float>(DType::f32, {0, 0}, 8, false);
    check_attention<float>(DType::f32, {0}, 8, false);
  });
}
