// The Python module pyseq._core. Each part of the core binds itself: checks at the border, nothing else.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_data(py::module_& data);   // csrc/data/bindings_data.cpp
void bind_words(py::module_& data);  // csrc/data/bindings_words.cpp
void bind_ops(py::module_& ops);     // csrc/cpu/bindings_ops.cpp

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of pyseq: pyseq._core.data (numpy arrays) and pyseq._core.ops (addresses and sizes).";
  auto data = m.def_submodule("data", "Words, batching, collation and token blocks.");
  bind_data(data);
  bind_words(data);
#ifdef PYSEQ_HAVE_OPS
  auto ops = m.def_submodule("ops", "Operations on memory given by address and size.");
  bind_ops(ops);
#endif
}
