// The bindings of layer normalisation: checks at the border, nothing else.
#include <pybind11/pybind11.h>

#include <vector>

#include "cpu/bindings.h"
#include "cpu/layer_norm.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

template <class T>
T* optional(uintptr_t address, size_t alignment, int64_t elements, const char* name) {
  return address == 0 ? nullptr : pointer<T>(address, alignment, elements, name);
}

LayerNormRows shape_of(int dtype, int64_t rows, int64_t cols, uintptr_t weight, uintptr_t bias, double p,
                       uintptr_t seed) {
  if (!(p >= 0.0 && p <= 1.0) || rows < 0 || cols < 0) {
    throw std::invalid_argument("p must be in [0, 1] and sizes not negative");
  }
  const int64_t number = seed == 0 ? 0 : *pointer<const int64_t>(seed, 8, 1, "seed");
  return {checked_dtype(dtype),
          rows,
          cols,
          optional<const float>(weight, 4, cols, "weight"),
          optional<const float>(bias, 4, cols, "bias"),
          dropout_of(p, number)};
}

void forward(int dtype, int64_t rows, int64_t cols, uintptr_t weight, uintptr_t bias, double p, uintptr_t seed,
             uintptr_t x, uintptr_t residual, double eps, uintptr_t y, uintptr_t z, uintptr_t mean, uintptr_t rstd,
             int threads) {
  const auto shape = shape_of(dtype, rows, cols, weight, bias, p, seed);
  const size_t size = size_of(shape.dtype);
  const int64_t count = rows * cols;
  layer_norm_forward(shape,
                     {pointer<const void>(x, size, count, "x"), optional<const void>(residual, size, count, "residual"),
                      eps, pointer<void>(y, size, count, "y"), optional<void>(z, size, count, "z"),
                      pointer<float>(mean, 4, rows, "mean"), pointer<float>(rstd, 4, rows, "rstd")},
                     threads);
}

void backward(int dtype, int64_t rows, int64_t cols, uintptr_t weight, uintptr_t bias, double p, uintptr_t seed,
              uintptr_t grad_y, uintptr_t grad_z, uintptr_t z, uintptr_t mean, uintptr_t rstd, uintptr_t grad_residual,
              uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias, int threads) {
  const auto shape = shape_of(dtype, rows, cols, weight, bias, p, seed);
  const size_t size = size_of(shape.dtype);
  const int64_t count = rows * cols;
  std::vector<float> partial(static_cast<size_t>(layer_norm_chunks(rows).count * 2 * cols));
  layer_norm_backward(
      shape,
      {pointer<const void>(grad_y, size, count, "grad_y"), optional<const void>(grad_z, size, count, "grad_z"),
       pointer<const void>(z, size, count, "z"), pointer<const float>(mean, 4, rows, "mean"),
       pointer<const float>(rstd, 4, rows, "rstd"), optional<void>(grad_residual, size, count, "grad_residual"),
       optional<void>(grad_x, size, count, "grad_x")},
      partial.data(), pointer<float>(grad_weight, 4, cols, "grad_weight"),
      pointer<float>(grad_bias, 4, cols, "grad_bias"), threads);
}

}  // namespace

void bind_layer_norm(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("layer_norm_forward", &forward, unlocked,
        "y and z of csrc/cpu/layer_norm.h, and the mean and 1 / deviation of each row. Addresses of what is absent "
        "are 0; weight and bias are fp32; seed is the address of an int64.",
        py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("weight"), py::arg("bias"), py::arg("p"),
        py::arg("seed"), py::arg("x"), py::arg("residual"), py::arg("eps"), py::arg("y"), py::arg("z"), py::arg("mean"),
        py::arg("rstd"), py::arg("threads"));
  m.def("layer_norm_backward", &backward, unlocked,
        "The gradients of residual (that is, of z), x, weight and bias; the first two may be absent.",
        py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("weight"), py::arg("bias"), py::arg("p"),
        py::arg("seed"), py::arg("grad_y"), py::arg("grad_z"), py::arg("z"), py::arg("mean"), py::arg("rstd"),
        py::arg("grad_residual"), py::arg("grad_x"), py::arg("grad_weight"), py::arg("grad_bias"),
        py::arg("threads"));
}
