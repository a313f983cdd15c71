// pyseq._core.ops: operations on memory given by address and size. pyseq/ops checks devices, shapes and strides; what
// is checked here is what would otherwise read or write outside.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/cross_entropy.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

template <class T>
T* pointer(uintptr_t address, size_t alignment, int64_t elements, const char* name) {
  if (elements > 0 && (address == 0 || address % alignment != 0)) {
    throw std::invalid_argument(std::string(name) + " is null or not aligned to its elements");
  }
  return reinterpret_cast<T*>(address);
}

CrossEntropyInput input_of(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols,
                           int64_t row_stride, int64_t ignore_index, double nll_weight, double smooth_weight) {
  if (dtype < 0 || dtype > 2) {
    throw std::invalid_argument("dtype must be 0 (fp32), 1 (bf16) or 2 (fp16)");
  }
  if (rows < 0 || cols < 0 || (rows > 1 && row_stride < cols)) {
    throw std::invalid_argument("rows and cols must not be negative, nor rows overlap");
  }
  const DType type = static_cast<DType>(dtype);
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

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

py::list isas() {
  py::list names;
  for (int isa = static_cast<int>(best_isa()); isa >= 0; --isa) {
    names.append(name_of(static_cast<Isa>(isa)));
  }
  return names;
}

void use_isa(const std::string& name) {
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (name == name_of(isa) && set_isa(isa)) {
      return;
    }
  }
  throw std::invalid_argument("this processor cannot run '" + name + "'");
}

}  // namespace

void bind_ops(py::module_& m) {
  m.def("isa", [] { return name_of(current_isa()); }, "The instruction set in use.");
  m.def("isas", &isas, "The instruction sets that this processor can run, best first.");
  m.def("use_isa", &use_isa, py::arg("name"), "Use one of isas() from now on.");

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
