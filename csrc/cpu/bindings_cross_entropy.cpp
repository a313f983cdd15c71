// The bindings of cpu/cross_entropy.h. pyseq/ops checks devices, shapes and strides; what is checked here is what would
// otherwise read or write outside.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cpu/bindings.h"
#include "cpu/cross_entropy.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

CrossEntropyInput input_of(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols,
                           int64_t row_stride, int64_t ignore_index, double nll_weight, double smooth_weight,
                           double z_loss, double soft_cap, uintptr_t class_weights) {
  if (rows < 0 || cols < 0 || (rows > 1 && row_stride < cols)) {
    throw std::invalid_argument("rows and cols must not be negative, nor rows overlap");
  }
  const DType type = checked_dtype(dtype);
  return {pointer<const void>(logits, size_of(type), rows * cols, "logits"),
          type,
          rows,
          cols,
          row_stride,
          pointer<const int64_t>(target, 8, rows, "target"),
          ignore_index,
          {nll_weight, smooth_weight, z_loss, static_cast<float>(soft_cap)},
          class_weights ? pointer<const float>(class_weights, 4, cols, "class_weights") : nullptr};
}

CrossEntropyOutput output_of(uintptr_t loss, uintptr_t nll, uintptr_t correct, uintptr_t stats, int64_t rows) {
  return {pointer<float>(loss, 4, rows, "loss"), pointer<float>(nll, 4, rows, "nll"),
          pointer<uint8_t>(correct, 1, rows, "correct"), pointer<float>(stats, 4, rows, "stats")};
}

CrossEntropyGradient gradient_of(const CrossEntropyInput& input, uintptr_t grad, int64_t row_stride) {
  if (input.rows > 1 && row_stride < input.cols) {
    throw std::invalid_argument("rows of the gradient must not overlap");
  }
  return {pointer<void>(grad, size_of(input.dtype), input.rows * input.cols, "grad"), row_stride};
}

int64_t forward(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
                int64_t ignore_index, double nll_weight, double smooth_weight, double z_loss, double soft_cap,
                uintptr_t class_weights, uintptr_t loss, uintptr_t nll, uintptr_t correct, uintptr_t stats,
                int threads) {
  const auto input = input_of(logits, dtype, target, rows, cols, row_stride, ignore_index, nll_weight, smooth_weight,
                              z_loss, soft_cap, class_weights);
  const auto output = output_of(loss, nll, correct, stats, rows);
  const int64_t bad = first_bad_target(input);
  if (bad < 0) {
    cross_entropy_forward(input, output, threads);
  }
  return bad;
}

int64_t backward(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
                 int64_t ignore_index, double nll_weight, double smooth_weight, double z_loss, double soft_cap,
                 uintptr_t class_weights, uintptr_t grad_loss, uintptr_t stats, uintptr_t grad,
                 int64_t grad_row_stride, int threads) {
  const auto input = input_of(logits, dtype, target, rows, cols, row_stride, ignore_index, nll_weight, smooth_weight,
                              z_loss, soft_cap, class_weights);
  auto* grad_loss_in = pointer<const float>(grad_loss, 4, rows, "grad_loss");
  auto* stats_in = pointer<const float>(stats, 4, rows, "stats");
  const auto gradient = gradient_of(input, grad, grad_row_stride);
  const int64_t bad = first_bad_target(input);
  if (bad < 0) {
    cross_entropy_backward(input, grad_loss_in, stats_in, gradient, threads);
  }
  return bad;
}

int64_t loss_and_gradient(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols,
                          int64_t row_stride, int64_t ignore_index, double nll_weight, double smooth_weight,
                          double z_loss, double soft_cap, uintptr_t class_weights, uintptr_t loss, uintptr_t nll,
                          uintptr_t correct, uintptr_t stats, uintptr_t row_weight, int64_t row_weight_stride,
                          uintptr_t grad, int64_t grad_row_stride, int threads) {
  const auto input = input_of(logits, dtype, target, rows, cols, row_stride, ignore_index, nll_weight, smooth_weight,
                              z_loss, soft_cap, class_weights);
  const auto output = output_of(loss, nll, correct, stats, rows);
  if (row_weight_stride != 0 && row_weight_stride != 1) {
    throw std::invalid_argument("row_weight_stride must be 0 or 1");
  }
  auto* weight = pointer<const float>(row_weight, 4, rows, "row_weight");
  const auto gradient = gradient_of(input, grad, grad_row_stride);
  const int64_t bad = first_bad_target(input);
  if (bad < 0) {
    cross_entropy_loss_and_gradient(input, weight, row_weight_stride, output, gradient, threads);
  }
  return bad;
}

py::tuple sums_and_gradient(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
                            int64_t ignore_index, double nll_weight, double smooth_weight, double z_loss, double soft_cap,
                            uintptr_t class_weights, bool mean, uintptr_t grad, int64_t grad_row_stride, int threads) {
  const auto input = input_of(logits, dtype, target, rows, cols, row_stride, ignore_index, nll_weight, smooth_weight,
                              z_loss, soft_cap, class_weights);
  const auto gradient = gradient_of(input, grad, grad_row_stride);
  const int64_t bad = first_bad_target(input);
  CrossEntropySums sums{};
  if (bad < 0) {
    const py::gil_scoped_release unlocked;
    sums = cross_entropy_sums_and_gradient(input, mean, gradient, threads);
  }
  return py::make_tuple(bad, mean ? sums.loss / sums.divisor : sums.loss, sums.nll, sums.correct, sums.z_loss);
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  // 0 for soft_cap and class_weights: none.
  m.def("cross_entropy_forward", &forward, unlocked,
        "Losses and statistics of every row. Returns the first row with a target out of range, or -1; nothing is "
        "written in the first case.",
        py::arg("logits"), py::arg("dtype"), py::arg("target"), py::arg("rows"), py::arg("cols"),
        py::arg("row_stride"), py::arg("ignore_index"), py::arg("nll_weight"), py::arg("smooth_weight"),
        py::arg("z_loss") = 0.0, py::arg("soft_cap") = 0.0, py::arg("class_weights") = 0, py::arg("loss"),
        py::arg("nll"), py::arg("correct"), py::arg("stats"), py::arg("threads"));
  m.def("cross_entropy_backward", &backward, unlocked,
        "The gradient of the logits. Returns as cross_entropy_forward does.", py::arg("logits"), py::arg("dtype"),
        py::arg("target"), py::arg("rows"), py::arg("cols"), py::arg("row_stride"), py::arg("ignore_index"),
        py::arg("nll_weight"), py::arg("smooth_weight"), py::arg("z_loss") = 0.0, py::arg("soft_cap") = 0.0,
        py::arg("class_weights") = 0, py::arg("grad_loss"), py::arg("stats"), py::arg("grad"),
        py::arg("grad_row_stride"), py::arg("threads"));
  m.def("cross_entropy_loss_and_gradient", &loss_and_gradient, unlocked,
        "What cross_entropy_forward computes, and the gradient of the weighted sum of the losses, which may take the "
        "place of the logits. Returns as cross_entropy_forward does.",
        py::arg("logits"), py::arg("dtype"), py::arg("target"), py::arg("rows"), py::arg("cols"),
        py::arg("row_stride"), py::arg("ignore_index"), py::arg("nll_weight"), py::arg("smooth_weight"),
        py::arg("z_loss") = 0.0, py::arg("soft_cap") = 0.0, py::arg("class_weights") = 0, py::arg("loss"),
        py::arg("nll"), py::arg("correct"), py::arg("stats"), py::arg("row_weight"), py::arg("row_weight_stride"),
        py::arg("grad"), py::arg("grad_row_stride"), py::arg("threads"));
  m.def("cross_entropy_sums_and_gradient", &sums_and_gradient,
        "The gradient of the sum of the losses, or of their mean, which may take the place of the logits. Returns the first "
        "row with a target out of range, or -1, and {loss (of which the gradient is), nll, correct, z-loss}, sums.",
        py::arg("logits"), py::arg("dtype"), py::arg("target"), py::arg("rows"), py::arg("cols"),
        py::arg("row_stride"), py::arg("ignore_index"), py::arg("nll_weight"), py::arg("smooth_weight"),
        py::arg("z_loss") = 0.0, py::arg("soft_cap") = 0.0, py::arg("class_weights") = 0, py::arg("mean"),
        py::arg("grad"), py::arg("grad_row_stride"), py::arg("threads"));
}
