// The bindings of cpu/grad_norm.h.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cpu/bindings.h"
#include "cpu/grad_norm.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

const NormRow* checked_rows(uintptr_t table, int64_t count) {
  const auto* rows = pointer<const NormRow>(table, 8, count, "table");
  for (int64_t r = 0; r < count; ++r) {
    const NormRow& row = rows[r];
    if (row.dtype < 0 || row.dtype >= norm_dtypes || row.numel < 0) {
      throw std::invalid_argument("a row has a dtype that is not 0 to 3, or a negative size");
    }
    const size_t alignment = row.dtype == 3 ? 8 : size_of(static_cast<DType>(row.dtype));
    pointer<const void>(reinterpret_cast<uintptr_t>(row.data), alignment, row.numel, "a tensor");
  }
  return rows;
}

double squares(uintptr_t table, int64_t count, int threads) {
  return sum_of_squares(checked_rows(table, count), count, threads);
}

void norm(uintptr_t table, int64_t count, double scale, uintptr_t scale_tensor, double max_norm, uintptr_t out,
          int threads) {
  const NormRow* rows = checked_rows(table, count);
  if (scale_tensor != 0) {
    scale = *pointer<const float>(scale_tensor, 4, 1, "scale");
  }
  *pointer<GradNorm>(out, 4, 1, "out") = grad_norm(sum_of_squares(rows, count, threads), scale, max_norm);
}

}  // namespace

void bind_grad_norm(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("sum_of_squares", &squares, unlocked,
        "The sum of the squares of all elements. A row of the table is {address, elements, dtype}, int64.",
        py::arg("table"), py::arg("rows"), py::arg("threads"));
  m.def("grad_norm", &norm, unlocked,
        "Writes {norm, factor, found_inf}, fp32, to `out`. scale_tensor is the address of an fp32 scale, or 0; a "
        "negative max_norm does not clip.",
        py::arg("table"), py::arg("rows"), py::arg("scale"), py::arg("scale_tensor"), py::arg("max_norm"),
        py::arg("out"), py::arg("threads"));
}
