// The bindings of cpu/adam.h. pyseq/ops checks devices, shapes and strides; what is checked here is what would otherwise
// read or write outside.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cpu/adam.h"
#include "cpu/bindings.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

AdamDtypes checked_dtypes(int param, int grad, int state, int extra) {
  if (extra < 0 || extra > 2) {
    throw std::invalid_argument("extra must be 0 (none), 1 (masters) or 2 (remainders)");
  }
  const AdamDtypes dtypes{checked_dtype(param), checked_dtype(grad), checked_dtype(state), static_cast<Extra>(extra)};
  if (!adam_takes(dtypes)) {
    throw std::invalid_argument("there is no kernel for these dtypes");
  }
  return dtypes;
}

void check_address(const void* address, size_t alignment, const char* name) {
  pointer<const void>(reinterpret_cast<uintptr_t>(address), alignment, 1, name);
}

const AdamRow* checked_rows(uintptr_t table, int64_t count, const AdamDtypes& dtypes) {
  const auto* rows = pointer<const AdamRow>(table, 8, count, "table");
  for (int64_t r = 0; r < count; ++r) {
    const AdamRow& row = rows[r];
    if (row.numel < 0) {
      throw std::invalid_argument("a row has a negative size");
    }
    check_address(row.param, size_of(dtypes.param), "a param");
    check_address(row.grad, size_of(dtypes.grad), "a grad");
    check_address(row.exp_avg, size_of(dtypes.state), "an exp_avg");
    check_address(row.exp_avg_sq, size_of(dtypes.state), "an exp_avg_sq");
    if (row.max_exp_avg_sq != nullptr) {
      check_address(row.max_exp_avg_sq, size_of(dtypes.state), "a max_exp_avg_sq");
    }
    if (dtypes.extra != Extra::none) {
      check_address(row.extra, dtypes.extra == Extra::master ? 4 : 2, "a master or remainder");
    }
  }
  return rows;
}

double value_at(uintptr_t address, double otherwise) {
  return address == 0 ? otherwise : *pointer<const float>(address, 4, 1, "a scalar");
}

void adam(uintptr_t table, int64_t count, int param, int grad, int state, int extra, double beta1, double beta2,
          double eps, double weight_decay, bool decoupled, bool corrected_eps, bool maximize, bool zero_grads,
          uint64_t seed, uintptr_t step, double lr, uintptr_t lr_tensor, uintptr_t factor, uintptr_t grad_scale,
          uintptr_t found_inf, int threads) {
  const AdamDtypes dtypes = checked_dtypes(param, grad, state, extra);
  const AdamRow* rows = checked_rows(table, count, dtypes);
  auto* done = pointer<float>(step, 4, 1, "step");
  if (!(*done >= 0.0f && *done < 2147483648.0f)) {
    throw std::invalid_argument("step must be the number of steps that have been made");
  }
  if (value_at(found_inf, 0.0) != 0.0) {
    if (zero_grads) {
      zero_gradients(rows, count, dtypes.grad);
    }
    return;
  }
  const AdamRule rule{beta1, beta2, eps, weight_decay, decoupled, corrected_eps, maximize};
  const AdamStep now =
      adam_step(rule, *done, value_at(lr_tensor, lr), value_at(factor, 1.0), value_at(grad_scale, 1.0));
  *done += 1.0f;
  adam_update_rows(rows, count, dtypes, now, {zero_grads, seed, static_cast<uint32_t>(*done)}, threads);
}

}  // namespace

void bind_adam(py::module_& m) {
  m.def("adam", &adam, py::call_guard<py::gil_scoped_release>(),
        "One step over the rows of a table (pyseq/ops/segments.py). step, lr_tensor, factor, grad_scale and found_inf "
        "are addresses of fp32 numbers, 0 where there is none.",
        py::arg("table"), py::arg("rows"), py::arg("param"), py::arg("grad"), py::arg("state"), py::arg("extra"),
        py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("decoupled"),
        py::arg("corrected_eps"), py::arg("maximize"), py::arg("zero_grads"), py::arg("seed"), py::arg("step"),
        py::arg("lr"), py::arg("lr_tensor"), py::arg("factor"), py::arg("grad_scale"), py::arg("found_inf"),
        py::arg("threads"));
}
