// The bindings of cuda/cross_entropy.h. pyseq/ops checks devices, shapes and strides.
#include <pybind11/pybind11.h>

#include "cuda/bindings.h"
#include "cuda/cross_entropy.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

size_t element_size(int dtype) {
  if (dtype < 0 || dtype > 2) {
    throw std::invalid_argument("dtype must be 0 (fp32), 1 (bf16) or 2 (fp16)");
  }
  return dtype == 0 ? 4 : 2;
}

CudaCrossEntropy input_of(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
                          int64_t ignore_index, const LossRule& rule, uintptr_t class_weight, uintptr_t weight_total,
                          uintptr_t stream) {
  if (rows < 0 || cols < 0 || (rows > 1 && row_stride < cols)) {
    throw std::invalid_argument("rows and cols must not be negative, nor rows overlap");
  }
  return {optional_pointer<const void>(logits, element_size(dtype), "logits"),
          dtype,
          rows,
          cols,
          row_stride,
          optional_pointer<const int64_t>(target, 8, "target"),
          ignore_index,
          rule,
          optional_pointer<const float>(class_weight, 4, "class_weight"),
          optional_pointer<const double>(weight_total, 8, "weight_total"),
          stream_of(stream)};
}

CudaRowResults results_of(uintptr_t loss, uintptr_t nll, uintptr_t correct, uintptr_t stats) {
  return {optional_pointer<float>(loss, 4, "loss"), optional_pointer<float>(nll, 4, "nll"),
          optional_pointer<uint8_t>(correct, 1, "correct"), optional_pointer<float>(stats, 8, "stats")};
}

RowWeighting weighting_of(uintptr_t of_row, int64_t stride, float uniform) {
  return {optional_pointer<const float>(of_row, 4, "row_weight"), stride, uniform};
}

CudaGradient gradient_of(uintptr_t grad, int dtype, int64_t row_stride) {
  return {optional_pointer<void>(grad, element_size(dtype), "grad"), row_stride};
}

void loss(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
          int64_t ignore_index, double nll_weight, double smooth_weight, double z_loss, float soft_cap,
          uintptr_t class_weight, uintptr_t weight_total, uintptr_t stream, uintptr_t losses, uintptr_t nll,
          uintptr_t correct, uintptr_t stats) {
  const auto input = input_of(logits, dtype, target, rows, cols, row_stride, ignore_index,
                              {nll_weight, smooth_weight, z_loss, soft_cap}, class_weight, weight_total, stream);
  check_launch(cuda_cross_entropy_loss(input, results_of(losses, nll, correct, stats)), "cross_entropy");
}

void gradient(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
              int64_t ignore_index, double nll_weight, double smooth_weight, double z_loss, float soft_cap,
              uintptr_t class_weight, uintptr_t weight_total, uintptr_t stream, uintptr_t stats, uintptr_t row_weight,
              int64_t row_weight_stride, float uniform_weight, uintptr_t grad, int64_t grad_row_stride) {
  const auto input = input_of(logits, dtype, target, rows, cols, row_stride, ignore_index,
                              {nll_weight, smooth_weight, z_loss, soft_cap}, class_weight, weight_total, stream);
  check_launch(cuda_cross_entropy_gradient(input, optional_pointer<const float>(stats, 8, "stats"),
                                           weighting_of(row_weight, row_weight_stride, uniform_weight),
                                           gradient_of(grad, dtype, grad_row_stride)),
               "the gradient of cross_entropy");
}

void loss_and_gradient(uintptr_t logits, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
                       int64_t ignore_index, double nll_weight, double smooth_weight, double z_loss, float soft_cap,
                       uintptr_t class_weight, uintptr_t weight_total, uintptr_t stream, uintptr_t losses,
                       uintptr_t nll, uintptr_t correct, uintptr_t stats, uintptr_t row_weight,
                       int64_t row_weight_stride, float uniform_weight, uintptr_t grad, int64_t grad_row_stride) {
  const auto input = input_of(logits, dtype, target, rows, cols, row_stride, ignore_index,
                              {nll_weight, smooth_weight, z_loss, soft_cap}, class_weight, weight_total, stream);
  check_launch(cuda_cross_entropy_loss_and_gradient(
                   input, weighting_of(row_weight, row_weight_stride, uniform_weight),
                   results_of(losses, nll, correct, stats), gradient_of(grad, dtype, grad_row_stride)),
               "cross_entropy with its gradient");
}

void scale(uintptr_t grad, int dtype, uintptr_t target, int64_t rows, int64_t cols, int64_t row_stride,
           int64_t ignore_index, uintptr_t factor, uintptr_t stream) {
  const auto input =
      input_of(0, dtype, target, rows, cols, row_stride, ignore_index, {1.0, 0.0, 0.0, 0.0f}, 0, 0, stream);
  check_launch(cuda_cross_entropy_scale(input, pointer<const float>(factor, 4, "factor"),
                                        gradient_of(grad, dtype, row_stride)),
               "the scaling of a gradient");
}

}  // namespace

// The arguments that the first three functions begin with. 0 for soft_cap, class_weight and weight_total: none.
#define PYSEQ_LOGITS                                                                                                  \
  py::arg("logits"), py::arg("dtype"), py::arg("target"), py::arg("rows"), py::arg("cols"), py::arg("row_stride"),    \
      py::arg("ignore_index"), py::arg("nll_weight"), py::arg("smooth_weight"), py::arg("z_loss"),                    \
      py::arg("soft_cap"), py::arg("class_weight"), py::arg("weight_total"), py::arg("stream")

void bind_cross_entropy(py::module_& m) {
  m.def("cross_entropy_loss", &loss, "Losses and statistics of every row.", PYSEQ_LOGITS, py::arg("loss"),
        py::arg("nll"), py::arg("correct"), py::arg("stats"));
  m.def("cross_entropy_gradient", &gradient, "The gradient of the weighted sum of the losses.", PYSEQ_LOGITS,
        py::arg("stats"), py::arg("row_weight"), py::arg("row_weight_stride"), py::arg("uniform_weight"),
        py::arg("grad"), py::arg("grad_row_stride"));
  m.def("cross_entropy_loss_and_gradient", &loss_and_gradient, "Both; the gradient may take the place of the logits.",
        PYSEQ_LOGITS, py::arg("loss"), py::arg("nll"), py::arg("correct"), py::arg("stats"), py::arg("row_weight"),
        py::arg("row_weight_stride"), py::arg("uniform_weight"), py::arg("grad"), py::arg("grad_row_stride"));
  m.def("cross_entropy_scale", &scale, "Multiplies a gradient by a number on the device.", py::arg("grad"),
        py::arg("dtype"), py::arg("target"), py::arg("rows"), py::arg("cols"), py::arg("row_stride"),
        py::arg("ignore_index"), py::arg("factor"), py::arg("stream"));
}
