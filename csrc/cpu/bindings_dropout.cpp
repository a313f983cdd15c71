// The binding of dropout: checks at the border, nothing else.
#include <pybind11/pybind11.h>

#include "cpu/bindings.h"
#include "cpu/dropout.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

void apply(uintptr_t x, uintptr_t residual, uintptr_t out, int dtype, int64_t count, double p, uintptr_t seed,
           int threads) {
  const DType type = checked_dtype(dtype);
  if (!(p >= 0.0 && p <= 1.0)) {
    throw std::invalid_argument("p must be in [0, 1]");
  }
  const int64_t number = *pointer<const int64_t>(seed, 8, 1, "seed");
  dropout(pointer<const void>(x, size_of(type), count, "x"),
          residual == 0 ? nullptr : pointer<const void>(residual, size_of(type), count, "residual"),
          pointer<void>(out, size_of(type), count, "out"), type, count, dropout_of(p, number), threads);
}

}  // namespace

void bind_dropout(py::module_& m) {
  m.def("dropout", &apply, py::call_guard<py::gil_scoped_release>(),
        "out = dropout(x) + residual, where residual is an address or 0. seed: address of an int64.", py::arg("x"),
        py::arg("residual"), py::arg("out"), py::arg("dtype"), py::arg("count"), py::arg("p"), py::arg("seed"),
        py::arg("threads"));
}
