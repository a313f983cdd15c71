// The bindings of cuda/adam.h. pyseq/ops checks devices, shapes and strides; what is checked here is what would otherwise
// read or write outside.
#include <pybind11/pybind11.h>

#include "cuda/adam.h"
#include "cuda/bindings.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

constexpr int columns = 6;

CudaAdamDtypes checked_dtypes(int param, int grad, int state, int extra) {
  const CudaAdamDtypes dtypes{param, grad, state, static_cast<CudaExtra>(extra)};
  if (!cuda_adam_takes(dtypes)) {
    throw std::invalid_argument("there is no kernel for these dtypes");
  }
  return dtypes;
}

int64_t segments(uintptr_t table, int64_t rows, int param, int grad, int state, int extra, uintptr_t out) {
  if (rows <= 0) {
    return 0;
  }
  const CudaAdamDtypes dtypes = checked_dtypes(param, grad, state, extra);
  const auto bytes = [](int dtype) -> int64_t { return dtype == 0 ? 4 : 2; };
  const int64_t sizes[columns] = {bytes(param), bytes(grad), bytes(state), bytes(state), bytes(state),
                                  dtypes.extra == CudaExtra::master ? 4 : 2};
  const bool needed[columns] = {true, true, true, true, false, dtypes.extra != CudaExtra::none};
  const auto* in = pointer<const int64_t>(table, 8, "table");
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t* row = in + (columns + 2) * r;
    if (row[columns] <= 0 || row[columns + 1] < 0 || row[columns + 1] > INT32_MAX) {
      throw std::invalid_argument("a row has a size or a key out of range");
    }
    for (int c = 0; c < columns; ++c) {
      if (needed[c] || row[c] != 0) {
        pointer<void>(static_cast<uintptr_t>(row[c]), static_cast<size_t>(sizes[c]), "a tensor");
      }
    }
  }
  return adam_segments(in, rows, sizes, pointer<AdamSegment>(out, 8, "segments"));
}

void adam(uintptr_t segments, uintptr_t device_segments, int count, int64_t chunks, int param, int grad, int state,
          int extra, double beta1, double beta2, double eps, double weight_decay, bool decoupled, bool corrected_eps,
          bool maximize, bool zero_grads, uint64_t seed, uintptr_t step, double lr, uintptr_t lr_tensor,
          uintptr_t factor, uintptr_t grad_scale, uintptr_t found_inf, uintptr_t workspace, uintptr_t stream) {
  CudaAdam input{};
  input.segments = count > 0 ? pointer<const AdamSegment>(segments, 8, "segments") : nullptr;
  input.device_segments = optional_pointer<const AdamSegment>(device_segments, 16, "device_segments");
  input.count = count;
  input.chunks = chunks;
  input.dtypes = checked_dtypes(param, grad, state, extra);
  input.rule = {beta1, beta2, eps, weight_decay, decoupled, corrected_eps, maximize};
  input.lr = lr;
  input.scalars = {pointer<float>(step, 4, "step"), optional_pointer<const float>(lr_tensor, 4, "lr"),
                   optional_pointer<const float>(factor, 4, "factor"),
                   optional_pointer<const float>(grad_scale, 4, "grad_scale"),
                   optional_pointer<const float>(found_inf, 4, "found_inf")};
  input.zero_grads = zero_grads;
  input.seed = seed;
  input.workspace = pointer<void>(workspace, 8, "workspace");
  check_launch(cuda_adam(input, stream_of(stream)), "adam");
}

}  // namespace

void bind_adam(py::module_& m) {
  m.attr("adam_inline_segments") = adam_inline_segments;
  m.def("adam_segments", &segments,
        "Makes segments, nine int64 each, of the rows of a table (pyseq/ops/segments.py). Returns their chunks.",
        py::arg("table"), py::arg("rows"), py::arg("param"), py::arg("grad"), py::arg("state"), py::arg("extra"),
        py::arg("out"));
  m.def("adam", &adam,
        "Queues one step. More than adam_inline_segments segments must be on the device too. step, lr_tensor, factor, "
        "grad_scale and found_inf are addresses of fp32 numbers on the device, 0 where there is none.",
        py::arg("segments"), py::arg("device_segments"), py::arg("count"), py::arg("chunks"), py::arg("param"),
        py::arg("grad"), py::arg("state"), py::arg("extra"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"),
        py::arg("weight_decay"), py::arg("decoupled"), py::arg("corrected_eps"), py::arg("maximize"),
        py::arg("zero_grads"), py::arg("seed"), py::arg("step"), py::arg("lr"), py::arg("lr_tensor"),
        py::arg("factor"), py::arg("grad_scale"), py::arg("found_inf"), py::arg("workspace"), py::arg("stream"));
}
