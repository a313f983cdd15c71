// pyseq._cuda: the kernels of csrc/cuda on memory given by address and size, each bound in a file of its own. The caller
// makes the memory's device current and passes a stream of it.
#include <pybind11/pybind11.h>

#include "cuda/bindings.h"
#include "cuda/workspace.h"

namespace py = pybind11;
using namespace pyseq;

void bind_adam(py::module_& m);           // bindings_adam.cpp
void bind_cross_entropy(py::module_& m);  // bindings_cross_entropy.cpp
void bind_grad_norm(py::module_& m);      // bindings_grad_norm.cpp

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of pyseq.ops";
  m.attr("workspace_bytes") = sizeof(Workspace);
  m.attr("runtime_version") = CUDART_VERSION;
  m.def("upload_table",
        [](uintptr_t device, uintptr_t host, size_t bytes, uintptr_t stream) {
          const auto* from = pointer<const int64_t>(host, 8, "host");
          check_launch(upload_table(pointer<void>(device, 16, "device"), from, bytes, stream_of(stream)),
                       "upload_table");
        },
        "Copies a table to the device, without waiting and without a reference to the host's copy.", py::arg("device"),
        py::arg("host"), py::arg("bytes"), py::arg("stream"));
  bind_adam(m);
  bind_cross_entropy(m);
  bind_grad_norm(m);
}
