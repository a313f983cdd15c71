// The bindings of cuda/grad_norm.h.
#include <pybind11/pybind11.h>

#include "cuda/bindings.h"
#include "cuda/grad_norm.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

py::tuple segments(uintptr_t table, int64_t rows, uintptr_t out) {
  const auto* in = rows > 0 ? pointer<const int64_t>(table, 8, "table") : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t numel = in[3 * r + 1], dtype = in[3 * r + 2];
    if (dtype < 0 || dtype > 3 || numel < 0) {
      throw std::invalid_argument("a row has a dtype that is not 0 to 3, or a negative size");
    }
    if (numel > 0) {
      pointer<const void>(static_cast<uintptr_t>(in[3 * r]), dtype == 0 ? 4 : dtype == 3 ? 8 : 2, "a tensor");
    }
  }
  const NormTable found = norm_segments(in, rows, rows > 0 ? pointer<NormSegment>(out, 8, "segments") : nullptr);
  return py::make_tuple(found.count, found.packs);
}

void norm(uintptr_t segments, uintptr_t device_segments, int count, int64_t packs, double scale, uintptr_t scale_tensor,
          double max_norm, uintptr_t workspace, uintptr_t squares, uintptr_t result, uintptr_t stream) {
  CudaGradNorm input{};
  input.segments = count > 0 ? pointer<const NormSegment>(segments, 8, "segments") : nullptr;
  input.device_segments = optional_pointer<const NormSegment>(device_segments, 16, "device_segments");
  input.table = {count, packs};
  input.scale = scale;
  input.scale_on_device = optional_pointer<const float>(scale_tensor, 4, "scale");
  input.max_norm = max_norm;
  input.workspace = pointer<void>(workspace, 8, "workspace");
  input.squares = optional_pointer<double>(squares, 8, "squares");
  input.result = optional_pointer<float>(result, 4, "result");
  check_launch(cuda_grad_norm(input, stream_of(stream)), "grad_norm");
}

}  // namespace

void bind_grad_norm(py::module_& m) {
  m.attr("norm_inline_segments") = norm_inline_segments;
  m.def("norm_segments", &segments,
        "Merges rows of {address, elements, dtype}, int64, into `out`: four int64 a row. Returns how many segments there "
        "are and their packs of 16 bytes.",
        py::arg("table"), py::arg("rows"), py::arg("out"));
  m.def("grad_norm", &norm,
        "Queues the norm of segments. More than norm_inline_segments must be on the device too; addresses of what there "
        "is not are 0; a negative max_norm does not clip.",
        py::arg("segments"), py::arg("device_segments"), py::arg("count"), py::arg("packs"), py::arg("scale"),
        py::arg("scale_tensor"), py::arg("max_norm"), py::arg("workspace"), py::arg("squares"), py::arg("result"),
        py::arg("stream"));
}
