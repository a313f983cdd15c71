// The binding of the matrix product: checks at the border, nothing else.
#include <pybind11/pybind11.h>

#include "cpu/bindings.h"
#include "cpu/gemm.h"
#include "cpu/outer_products.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

StridedMatrix matrix(uintptr_t address, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                     const char* name) {
  if (row_stride < 0 || col_stride < 0) {
    throw std::invalid_argument(std::string(name) + " has a negative stride");
  }
  return {pointer<const float>(address, 4, rows * cols, name), row_stride, col_stride};
}

void multiply(int64_t rows, int64_t cols, int64_t depth, uintptr_t a, int64_t a_row, int64_t a_col, uintptr_t b,
              int64_t b_row, int64_t b_col, uintptr_t c, int64_t c_row, bool accumulate, uintptr_t bias, bool relu,
              uintptr_t a_sums, int threads) {
  if (rows < 0 || cols < 0 || depth < 0 || (rows > 1 && c_row < cols)) {
    throw std::invalid_argument("sizes must not be negative, nor rows of c overlap");
  }
  gemm({rows, cols, depth, matrix(a, rows, depth, a_row, a_col, "a"), matrix(b, depth, cols, b_row, b_col, "b"),
        pointer<float>(c, 4, rows * cols, "c"), c_row, accumulate,
        bias == 0 ? nullptr : pointer<const float>(bias, 4, cols, "bias"), relu,
        a_sums == 0 ? nullptr : pointer<float>(a_sums, 4, rows, "a_sums")},
       threads);
}

void add_outer_products(int64_t rows, int64_t a_cols, int64_t b_cols, uintptr_t a, int64_t a_row, uintptr_t b,
                        int64_t b_row, uintptr_t c, int64_t c_row, bool accumulate, int threads) {
  if (rows < 0 || a_cols < 0 || b_cols < 0 || (rows > 1 && (a_row < a_cols || b_row < b_cols)) ||
      (a_cols > 1 && c_row < b_cols)) {
    throw std::invalid_argument("sizes must not be negative, nor rows overlap");
  }
  outer_products({rows, a_cols, b_cols, pointer<const bf16>(a, 2, rows * a_cols, "a"), a_row,
                  pointer<const bf16>(b, 2, rows * b_cols, "b"), b_row, pointer<float>(c, 4, a_cols * b_cols, "c"), c_row,
                  accumulate},
                 threads);
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.def("gemm", &multiply, py::call_guard<py::gil_scoped_release>(),
        "c (+)= a b, then + bias, then relu, of fp32 matrices: a [rows x depth], b [depth x cols] with strides of rows and "
        "columns in elements, c [rows x cols] without gaps within a row; a_sums (+)= the sums of the rows of a. bias and "
        "a_sums: addresses, or 0.",
        py::arg("rows"), py::arg("cols"), py::arg("depth"), py::arg("a"), py::arg("a_row"), py::arg("a_col"),
        py::arg("b"), py::arg("b_row"), py::arg("b_col"), py::arg("c"), py::arg("c_row"), py::arg("accumulate"),
        py::arg("bias"), py::arg("relu"), py::arg("a_sums"), py::arg("threads"));
  m.def("outer_products", &add_outer_products, py::call_guard<py::gil_scoped_release>(),
        "c (+)= the transpose of a, times b: bf16 a [rows x a_cols] and b [rows x b_cols], fp32 c [a_cols x b_cols], all "
        "without gaps within a row, whose distance is given in elements.",
        py::arg("rows"), py::arg("a_cols"), py::arg("b_cols"), py::arg("a"), py::arg("a_row"), py::arg("b"),
        py::arg("b_row"), py::arg("c"), py::arg("c_row"), py::arg("accumulate"), py::arg("threads"));
}
