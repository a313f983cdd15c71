// pyseq._core.ops: operations on memory given by address and size, each bound in a file of its own.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/isa.h"

namespace py = pybind11;
using namespace pyseq;

void bind_adam(py::module_& m);           // bindings_adam.cpp
void bind_attention(py::module_& m);      // bindings_attention.cpp
void bind_cross_entropy(py::module_& m);  // bindings_cross_entropy.cpp
void bind_decoding(py::module_& m);       // bindings_decoding.cpp
void bind_dropout(py::module_& m);        // bindings_dropout.cpp
void bind_gemm(py::module_& m);           // bindings_gemm.cpp
void bind_grad_norm(py::module_& m);      // bindings_grad_norm.cpp
void bind_layer_norm(py::module_& m);     // bindings_layer_norm.cpp
void bind_segments(py::module_& m);       // bindings_segments.cpp

namespace {

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
  m.def("vendor", &vendor, "Who made this processor: amd, intel or other.");
  m.def("has_bf16_products", &has_bf16_products, "Whether kernels of bf16 products can be used with isa().");
  m.def("use_isa", &use_isa, py::arg("name"), "Use one of isas() from now on.");
  bind_adam(m);
  bind_attention(m);
  bind_cross_entropy(m);
  bind_decoding(m);
  bind_dropout(m);
  bind_gemm(m);
  bind_grad_norm(m);
  bind_layer_norm(m);
  bind_segments(m);
}
