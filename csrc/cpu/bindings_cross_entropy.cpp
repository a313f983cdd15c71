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
                           int64_t row_stride, int64_t ignore_index, double nll_weight, double smooth_weight) {
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
          {nll_weight, smooth_weight}};
}

int64_t forward(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
                int64_t ignore_index, double nll_weight, double smooth_weight, uintptr_t loss, uintptr_t nll,
                uintptr_t correct, uintptr_t stats, int threads) {
  const auto input =
      input_of(logits, dtype, target, rows, cols, row_stride, ignore_index, nll_weight, smooth_weight);
  auto* loss_out = pointer<float>(loss, 4, rows, "loss");
  auto* nll_out = pointer<float>(nll, 4, rows, "nll");
  auto* correct_out = pointer<uint8_t>(correct, 1, rows, "correct");
  auto* stats_out = pointer<float>(stats, 4, rows, "stats");
  const int64_t bad = first_bad_target(input);
  if (bad < 0) {
    cross_entropy_forward(input, loss_out, nll_out, correct_out, stats_out, threads);
  }
  return bad;
}

int64_t backward(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
                 int64_t ignore_index, double nll_weight, double smooth_weight, uintptr_t grad_loss, uintptr_t stats,
                 uintptr_t grad, int threads) {
  const auto input =
      input_of(logits, dtype, target, rows, cols, row_stride, ignore_index, nll_weight, smooth_weight);
  auto* grad_loss_in = pointer<const float>(grad_loss, 4, rows, "grad_loss");
  auto* stats_in = pointer<const float>(stats, 4, rows, "stats");
  auto* grad_out = pointer<void>(grad, size_of(input.dtype), rows * cols, "grad");
  const int64_t bad = first_bad_target(input);
  if (bad < 0) {
    cross_entropy_backward(input, grad_loss_in, stats_in, grad_out, threads);
  }
  return bad;
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("cross_entropy_forward", &forward, unlocked,
        "Losses and statistics of every row. Returns the first row with a target out of range, or -1; nothing is "
        "written in the first case.",
        py::arg("logits"), py::arg("dtype"), py::arg("target"), py::arg("rows"), py::arg("cols"),
        py::arg("row_stride"), py::arg("ignore_index"), py::arg("nll_weight"), py::arg("smooth_weight"),
        py::arg("loss"), py::arg("nll"), py::arg("correct"), py::arg("stats"), py::arg("threads"));
  m.def("cross_entropy_backward", &backward, unlocked,
        "The gradient of the logits. Returns as cross_entropy_forward does.", py::arg("logits"), py::arg("dtype"),
        py::arg("target"), py::arg("rows"), py::arg("cols"), py::arg("row_stride"), py::arg("ignore_index"),
        py::arg("nll_weight"), py::arg("smooth_weight"), py::arg("grad_loss"), py::arg("stats"), py::arg("grad"),
        py::arg("threads"));
}
