#include "cpu/cross_entropy.h"

#include <omp.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/memory.h"

namespace pyseq {

namespace {

RowKernels kernels_for(DType dtype) {
  return PYSEQ_OF_ISA(row_kernels(dtype));
}

const void* row_of(const CrossEntropyInput& input, int64_t row) {
  const int64_t bytes = row * input.row_stride * static_cast<int64_t>(size_of(input.dtype));
  return static_cast<const char*>(input.logits) + bytes;
}

float element(const void* row, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return static_cast<const float*>(row)[index];
    case DType::bf16:
      return to_float(static_cast<const bf16*>(row)[index]);
    default:
      return to_float(static_cast<const f16*>(row)[index]);
  }
}

void set_element(void* row, int64_t index, DType dtype, float value) {
  switch (dtype) {
    case DType::f32:
      static_cast<float*>(row)[index] = value;
      break;
    case DType::bf16:
      from_float(value, static_cast<bf16*>(row) + index);
      break;
    default:
      from_float(value, static_cast<f16*>(row) + index);
  }
}

// Whether the target is what argmax finds: the first maximum, where nan counts as the largest number.
bool is_first_maximum(const RowKernels& kernels, const void* row, DType dtype, int64_t cols, int64_t target,
                      const RowSums& sums) {
  const float value = element(row, target, dtype);
  if (std::isnan(sums.exp_sum)) {
    int64_t first = 0;
    while (first < cols && !std::isnan(element(row, first, dtype))) {
      ++first;
    }
    if (first < cols) {
      return target == first;
    }
  }
  return value == sums.max && !kernels.contains(row, target, sums.max);
}

double total_of(const float* class_weights, int64_t cols) {
  double total = 0.0;
  for (int64_t i = 0; i < cols; ++i) {
    total += class_weights[i];
  }
  return total;
}

// Memory for a row's intermediate values, one part a thread.
class Scratch {
 public:
  Scratch(int threads, int64_t floats)
      : floats_((floats + line - 1) / line * line),
        memory_(floats == 0 ? nullptr : new float[static_cast<size_t>(floats_ * threads + line)]) {}

  float* of_thread(int thread) const {
    const uintptr_t bytes = line * sizeof(float);
    const uintptr_t aligned = (reinterpret_cast<uintptr_t>(memory_.get()) + bytes - 1) / bytes * bytes;
    return reinterpret_cast<float*>(aligned) + thread * floats_;
  }

 private:
  static constexpr int64_t line = 16;  // floats in a cache line
  int64_t floats_;
  std::unique_ptr<float[]> memory_;
};

int64_t rounded_up(int64_t floats) { return (floats + 15) / 16 * 16; }

// What the rows of one call share, and the work on one row.
class Rows {
 public:
  explicit Rows(const CrossEntropyInput& input)
      : in_(input),
        kernels_(kernels_for(input.dtype)),
        capped_kernels_(kernels_for(DType::f32)),
        total_weight_(input.class_weights ? total_of(input.class_weights, input.cols)
                                          : static_cast<double>(input.cols)) {}

  bool is_capped() const { return in_.rule.soft_cap != 0.0f; }
  bool is_ignored(int64_t row) const { return in_.target[row] == in_.ignore_index; }

  // Whether the gradient of a row can wait for the sums of the next row.
  bool is_pipelined() const { return !is_capped() && !in_.class_weights; }

  // Floats that a thread needs for capped logits and the slopes of the cap, and for the exponentials of one row.
  int64_t capped_floats() const { return is_capped() ? 2 * rounded_up(in_.cols) : 0; }
  int64_t kept_floats() const {
    return rounded_up(in_.cols) + rounded_up((in_.cols + cross_entropy_block - 1) / cross_entropy_block);
  }
  KeptExponentials kept_at(float* memory) const { return {memory, memory + rounded_up(in_.cols)}; }

  // Fills the output of row r and returns its sums. `scratch` receives the capped logits, if there is a cap. A pending
  // gradient is written, except where row r is ignored.
  RowSums forward(int64_t r, const CrossEntropyOutput& out, float* scratch, const KeptExponentials* kept,
                  const PendingGradient* pending) const {
    const int64_t target = in_.target[r];
    if (is_ignored(r)) {
      write(out, r, {0.0f, 0.0f}, false, 0.0f, 1.0f);
      return {0.0f, 1.0, 0.0};
    }
    const void* row = capped_row(r, scratch);
    const RowKernels& kernels = is_capped() ? capped_kernels_ : kernels_;
    const RowSums sums = kernels.sums(row, in_.cols, in_.class_weights, kept, pending);
    const RowLoss loss = row_loss(sums, element(row, target, row_dtype()), weights_of(target), in_.rule);
    const bool correct = is_first_maximum(kernels, row, row_dtype(), in_.cols, target, sums);
    write(out, r, loss, correct, sums.max, static_cast<float>(sums.exp_sum));
    return sums;
  }

  // Writes the gradient of row r from its logits.
  void backward(int64_t r, float grad_loss, float max, double exp_sum, float* scratch, void* out, bool stream) const {
    if (is_ignored(r)) {
      clear(out);
      return;
    }
    const void* row = capped_row(r, scratch);
    const PendingGradient pending = gradient_of(r, grad_loss, max, exp_sum, {}, scratch, out, stream);
    const auto write_row = is_capped() ? kernels_.gradient_of_capped : kernels_.gradient;
    write_row(row, in_.cols, max, pending.rule, out, stream);
    write_target(pending);
  }

  // What is to be written for row r, whose capped logits, if there is a cap, are in `scratch`.
  PendingGradient gradient_of(int64_t r, float grad_loss, float max, double exp_sum, const KeptExponentials& kept,
                              const float* scratch, void* out, bool stream) const {
    const int64_t target = in_.target[r];
    const RowWeights weights = weights_of(target);
    const GradientRule rule{row_gradient(grad_loss, max, exp_sum, weights, in_.rule), in_.class_weights,
                            is_capped() ? slopes_in(scratch) : nullptr};
    const float logit = is_capped() ? scratch[target] : element(row_of(in_, r), target, in_.dtype);
    const float value =
        target_gradient(grad_loss, logit, max, exp_sum, rule.row.mass, weights, in_.rule, target_slope(r, target));
    return {kept, max, rule, out, stream, target, value};
  }

  void write_gradient(const PendingGradient& pending) const {
    kernels_.gradient_of_kept(pending, in_.cols);
    write_target(pending);
  }

  void write_target(const PendingGradient& pending) const {
    set_element(pending.out, pending.target, in_.dtype, pending.target_value);
  }

  void clear(void* out) const { std::memset(out, 0, static_cast<size_t>(in_.cols) * size_of(in_.dtype)); }

 private:
  const float* slopes_in(const float* scratch) const { return scratch + rounded_up(in_.cols); }

  // In double, from the logit itself: the target has most of the gradient.
  double target_slope(int64_t r, int64_t target) const {
    if (!is_capped()) {
      return 1.0;
    }
    const double logit = element(row_of(in_, r), target, in_.dtype);
    const double t = std::tanh(logit / in_.rule.soft_cap);
    return 1.0 - t * t;
  }

  DType row_dtype() const { return is_capped() ? DType::f32 : in_.dtype; }

  const void* capped_row(int64_t r, float* scratch) const {
    if (!is_capped()) {
      return row_of(in_, r);
    }
    kernels_.cap(row_of(in_, r), in_.cols, in_.rule.soft_cap, scratch, scratch + rounded_up(in_.cols));
    return scratch;
  }

  RowWeights weights_of(int64_t target) const {
    return {in_.class_weights ? in_.class_weights[target] : 1.0, total_weight_};
  }

  static void write(const CrossEntropyOutput& out, int64_t r, const RowLoss& loss, bool correct, float max,
                    float exp_sum) {
    out.loss[r] = loss.loss;
    out.nll[r] = loss.nll;
    out.correct[r] = correct;
    out.stats[2 * r] = max;
    out.stats[2 * r + 1] = exp_sum;
  }

  const CrossEntropyInput& in_;
  RowKernels kernels_;
  RowKernels capped_kernels_;
  double total_weight_;
};

void* row_of(const CrossEntropyGradient& gradient, DType dtype, int64_t row) {
  return static_cast<char*>(gradient.grad) + row * gradient.row_stride * static_cast<int64_t>(size_of(dtype));
}

// Stores that bypass the cache pay for a large gradient, but not where the lines that it replaces were just read.
bool streams(const CrossEntropyInput& input, const CrossEntropyGradient& gradient) {
  const int64_t bytes = input.rows * input.cols * static_cast<int64_t>(size_of(input.dtype));
  if (gradient.grad == input.logits) {
    return false;
  }
  advise_huge_pages(gradient.grad, bytes);
  return is_beyond_cache(bytes);
}

}  // namespace

int64_t first_bad_target(const CrossEntropyInput& input) {
  for (int64_t row = 0; row < input.rows; ++row) {
    const int64_t target = input.target[row];
    if ((target < 0 || target >= input.cols) && target != input.ignore_index) {
      return row;
    }
  }
  return -1;
}

void cross_entropy_forward(const CrossEntropyInput& input, const CrossEntropyOutput& output, int threads) {
  const Rows rows(input);
  const int team = team_for(useful_threads(threads, input.rows, input.cols), threads);
  const Scratch scratch(team, rows.capped_floats());
#pragma omp parallel for num_threads(team) schedule(static)
  for (int64_t r = 0; r < input.rows; ++r) {
    rows.forward(r, output, scratch.of_thread(omp_get_thread_num()), nullptr, nullptr);
  }
}

void cross_entropy_backward(const CrossEntropyInput& input, const float* grad_loss, const float* stats,
                            const CrossEntropyGradient& gradient, int threads) {
  const Rows rows(input);
  const bool stream = streams(input, gradient);
  const int team = team_for(useful_threads(threads, input.rows, input.cols), threads);
  const Scratch scratch(team, rows.capped_floats());
#pragma omp parallel num_threads(team)
  {
    float* mine = scratch.of_thread(omp_get_thread_num());
#pragma omp for schedule(static) nowait
    for (int64_t r = 0; r < input.rows; ++r) {
      rows.backward(r, grad_loss[r], stats[2 * r], stats[2 * r + 1], mine, row_of(gradient, input.dtype, r), stream);
    }
    finish_streaming();
  }
}

void cross_entropy_loss_and_gradient(const CrossEntropyInput& input, const float* row_weight, int64_t weight_stride,
                                     const CrossEntropyOutput& output, const CrossEntropyGradient& gradient,
                                     int threads) {
  const Rows rows(input);
  const bool stream = streams(input, gradient);
  const int team = team_for(useful_threads(threads, input.rows, input.cols), threads);
  const Scratch scratch(team, rows.capped_floats() + 2 * rows.kept_floats());
#pragma omp parallel num_threads(team)
  {
    float* capped = scratch.of_thread(omp_get_thread_num());
    KeptExponentials kept = rows.kept_at(capped + rows.capped_floats());
    KeptExponentials other = rows.kept_at(capped + rows.capped_floats() + rows.kept_floats());
    PendingGradient pending;
    bool is_pending = false;
#pragma omp for schedule(static) nowait
    for (int64_t r = 0; r < input.rows; ++r) {
      void* out = row_of(gradient, input.dtype, r);
      const RowSums sums = rows.forward(r, output, capped, &kept, is_pending ? &pending : nullptr);
      if (rows.is_ignored(r)) {
        rows.clear(out);
        continue;
      }
      if (is_pending) {
        rows.write_target(pending);
      }
      pending = rows.gradient_of(r, row_weight[r * weight_stride], sums.max, sums.exp_sum, kept, capped, out, stream);
      is_pending = rows.is_pipelined();
      if (is_pending) {
        std::swap(kept, other);
      } else {
        rows.write_gradient(pending);
      }
    }
    if (is_pending) {
      rows.write_gradient(pending);
    }
    finish_streaming();
  }
}

CrossEntropySums cross_entropy_sums_and_gradient(const CrossEntropyInput& input, bool mean,
                                                 const CrossEntropyGradient& gradient, int threads) {
  CrossEntropySums sums{};
  for (int64_t r = 0; r < input.rows; ++r) {
    const int64_t target = input.target[r];
    if (target != input.ignore_index) {
      sums.divisor += input.class_weights ? input.class_weights[target] : 1.0;
    }
  }
  const float weight = mean ? static_cast<float>(1.0 / sums.divisor) : 1.0f;
  const auto rows = static_cast<size_t>(input.rows);
  std::vector<float> loss(rows), nll(rows), stats(2 * rows);
  std::vector<uint8_t> correct(rows);
  const CrossEntropyOutput output{loss.data(), nll.data(), correct.data(), stats.data()};
  cross_entropy_loss_and_gradient(input, &weight, 0, output, gradient, threads);
  for (size_t r = 0; r < rows; ++r) {
    sums.loss += loss[r];
    sums.nll += nll[r];
    sums.correct += correct[r];
    if (input.rule.z_loss != 0.0) {
      const double lse = stats[2 * r] + std::log(static_cast<double>(stats[2 * r + 1]));
      sums.z_loss += input.rule.z_loss * lse * lse;
    }
  }
  return sums;
}

}  // namespace pyseq
