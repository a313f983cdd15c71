#include <pybind11/pybind11.h>

#include "cpu/python_tensor.h"

namespace py = pybind11;

namespace pyseq {

namespace {

// DLPackExchangeAPI.
struct ExchangeTable {
  uint32_t major, minor;
  void* previous;
  void* allocate;
  void* managed_from_object;
  void* object_from_managed;
  int (*view_of_object)(void* object, TensorView* out);  // borrows; may be null
  void* current_stream;
};

decltype(ExchangeTable::view_of_object) view_of_object = nullptr;
PyObject* grad_descriptor = nullptr;  // of Tensor.grad: half the time of looking the attribute up by its name

// Whether the memory has the elements with the other sign, of which DLPack says nothing. Such are imaginary parts of
// conjugates. They have gaps, which is seen elsewhere, unless they are of one element.
bool is_negated(PyObject* object) {
  PyObject* const negated = PyObject_CallMethod(object, "is_neg", nullptr);
  if (negated == nullptr) {
    PyErr_Clear();
  }
  Py_XDECREF(negated);
  return negated != Py_False;
}

bool view_by_dlpack(PyObject* object, TensorView* view) {
  if (view_of_object(object, view) != 0) {
    PyErr_Clear();  // whoever asks in Python gets a better message
    return false;
  }
  return view->numel() != 1 || !is_negated(object);
}

PyObject* grad_by_descriptor(PyObject* object) {
  return Py_TYPE(grad_descriptor)->tp_descr_get(grad_descriptor, object, reinterpret_cast<PyObject*>(Py_TYPE(object)));
}

void prefetch_by_guess(PyObject* const* items, int64_t i, int64_t count) {
  constexpr int64_t far = 12, near = 6;
  if (i + far < count) {
    __builtin_prefetch(items[i + far]);
  }
  if (i + near < count && Py_TYPE(items[i + near])->tp_basicsize >= 4 * static_cast<Py_ssize_t>(sizeof(void*))) {
    // The words behind the header: one of them leads to the tensor. A wrong address does no harm.
    const char* const* words = reinterpret_cast<const char* const*>(items[i + near]);
    for (int word = 2; word < 4; ++word) {
      for (int line = 0; line < 4; ++line) {
        __builtin_prefetch(words[word] + 64 * line);
      }
    }
  }
}

constexpr TensorAccess by_dlpack{view_by_dlpack, grad_by_descriptor, prefetch_by_guess, nullptr, nullptr, nullptr};

}  // namespace

TensorReader& TensorReader::get() {
  static TensorReader* reader = new TensorReader();  // never destroyed: the interpreter may be gone by then
  return *reader;
}

TensorReader::TensorReader() {
  const py::object tensor = py::module_::import("torch").attr("Tensor");
  const py::object parameter = py::module_::import("torch").attr("nn").attr("Parameter");
  tensor_ = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  parameter_ = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
  grad_descriptor = py::object(tensor.attr("grad")).release().ptr();
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    return;
  }
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const auto* table =
      static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (table == nullptr) {
    PyErr_Clear();
  } else if (table->major == 1 && table->view_of_object != nullptr) {
    view_of_object = table->view_of_object;
    access_ = by_dlpack_ = &by_dlpack;
  }
}

bool is_dense(const TensorView& view) {
  constexpr int most = 16;
  int order[most];  // the dimensions with more than one element, by stride
  int count = 0;
  if (view.dims > most) {
    return false;
  }
  for (int d = view.dims - 1; d >= 0; --d) {
    if (view.shape[d] == 0) {
      return true;
    }
    if (view.shape[d] == 1) {
      continue;
    }
    int place = count++;
    for (; place > 0 && view.strides[order[place - 1]] > view.strides[d]; --place) {
      order[place] = order[place - 1];
    }
    order[place] = d;
  }
  int64_t expected = 1;
  for (int k = 0; k < count; ++k) {
    if (view.strides[order[k]] != expected) {
      return false;
    }
    expected *= view.shape[order[k]];
  }
  return true;
}

bool same_layout(const TensorView& a, const TensorView& b) {
  if (a.dims != b.dims) {
    return false;
  }
  for (int d = 0; d < a.dims; ++d) {
    if (a.shape[d] != b.shape[d] || (a.strides[d] != b.strides[d] && a.shape[d] > 1)) {
      return false;
    }
  }
  return true;
}

uint64_t layout_hash(const TensorView& view) {
  uint64_t hash = static_cast<uint64_t>(view.dims);
  const auto mix = [&hash](int64_t value) {  // the finish of SplitMix64
    hash += static_cast<uint64_t>(value) + 0x9e3779b97f4a7c15u;
    hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
    hash ^= hash >> 31;
  };
  for (int d = 0; d < view.dims; ++d) {
    mix(view.shape[d]);
    mix(view.shape[d] > 1 ? view.strides[d] : 0);
  }
  return hash;
}

}  // namespace pyseq
