// Where torch tensors and their gradients lie, without a Python object being asked. In a step over thousands of small
// tensors nearly all the time is waiting for memory: tensor, implementation, autograd's data and gradient each lead to
// the next. Loads that are begun some tensors ahead wait together.
#include <torch/csrc/autograd/python_variable.h>

#include "cpu/python_tensor.h"
#include "torch/torch_module.h"

namespace pyseq {

namespace {

using c10::TensorImpl;

TensorImpl* implementation(PyObject* object) { return THPVariable_Unpack(object).unsafeGetTensorImpl(); }

// Null for what is not there, or no tensor.
TensorImpl* implementation_at(PyObject* const* items, int64_t i, int64_t count) {
  return i < count && THPVariable_CheckExact(items[i]) ? implementation(items[i]) : nullptr;
}

// Null for what has no gradient.
const at::Tensor* gradient(const TensorImpl& tensor) {
  const auto* autograd = tensor.autograd_meta();
  if (autograd == nullptr) {
    return nullptr;
  }
  const at::Tensor& grad = autograd->grad();
  return grad.defined() ? &grad : nullptr;
}

bool set_type(const TensorImpl& tensor, TensorView* view) {
  view->lanes = 1;
  view->bits = static_cast<uint8_t>(8 * tensor.itemsize());
  switch (c10::typeMetaToScalarType(tensor.dtype())) {
    case c10::ScalarType::Float:
    case c10::ScalarType::Double:
    case c10::ScalarType::Half:
      view->type_code = 2;
      return true;
    case c10::ScalarType::BFloat16:
      view->type_code = 4;
      return true;
    case c10::ScalarType::Short:
      view->type_code = 0;
      return true;
    default:
      return false;
  }
}

bool set_device(const TensorImpl& tensor, TensorView* view) {
  const c10::Device device = tensor.device();
  view->device_type = device.is_cpu() ? 1 : 2;
  view->device_id = device.is_cpu() ? 0 : device.index();
  return device.is_cpu() || device.is_cuda();
}

// Others are left to Python, which knows what to make of them or says why not.
bool is_plain(const TensorImpl& tensor) {
  constexpr c10::DispatchKeySet unusual({c10::DispatchKey::Negative, c10::DispatchKey::Conjugate,
                                         c10::DispatchKey::Python, c10::DispatchKey::FuncTorchGradWrapper,
                                         c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Functionalize,
                                         c10::DispatchKey::ZeroTensor});
  return tensor.layout() == c10::kStrided && tensor.has_storage() && !tensor.has_symbolic_sizes_strides() &&
         (tensor.key_set() & unusual).empty();
}

bool view(PyObject* object, TensorView* out) {
  const TensorImpl& tensor = *implementation(object);
  if (!is_plain(tensor) || !set_type(tensor, out) || !set_device(tensor, out)) {
    return false;
  }
  try {
    out->data = tensor.unsafe_storage().mutable_data();
  } catch (const c10::Error&) {
    return false;
  }
  out->byte_offset = static_cast<uint64_t>(tensor.storage_offset()) * tensor.itemsize();
  out->dims = static_cast<int32_t>(tensor.dim());
  // Those of a DLTensor are not const. Nothing writes to them.
  out->shape = const_cast<int64_t*>(tensor.sizes().data());
  out->strides = const_cast<int64_t*>(tensor.strides().data());
  return true;
}

PyObject* grad(PyObject* object) {
  const at::Tensor* found = gradient(*implementation(object));
  return found == nullptr ? Py_NewRef(Py_None) : THPVariable_Wrap(*found);
}

void prefetch_bytes(const void* begin, size_t bytes) {
  for (size_t byte = 0; byte < bytes; byte += 64) {
    __builtin_prefetch(static_cast<const char*>(begin) + byte);
  }
}

void prefetch_storage(const TensorImpl& tensor) {
  if (tensor.has_storage()) {
    __builtin_prefetch(tensor.unsafe_storage().unsafeGetStorageImpl());
  }
}

void prefetch(PyObject* const* items, int64_t i, int64_t count) {
  constexpr int64_t ahead = 6;  // tensors from one load of a chain to the next
  if (i + 5 * ahead < count) {
    __builtin_prefetch(items[i + 5 * ahead]);
  }
  if (const TensorImpl* tensor = implementation_at(items, i + 4 * ahead, count)) {
    prefetch_bytes(tensor, sizeof(TensorImpl));
  }
  if (const TensorImpl* tensor = implementation_at(items, i + 3 * ahead, count)) {
    prefetch_bytes(tensor->autograd_meta(), 64);
    prefetch_storage(*tensor);
  }
  if (const TensorImpl* tensor = implementation_at(items, i + 2 * ahead, count)) {
    if (const at::Tensor* found = gradient(*tensor)) {
      prefetch_bytes(found->unsafeGetTensorImpl(), sizeof(TensorImpl));
    }
  }
  if (const TensorImpl* tensor = implementation_at(items, i + ahead, count)) {
    if (const at::Tensor* found = gradient(*tensor)) {
      prefetch_storage(*found->unsafeGetTensorImpl());
    }
  }
}

bool increment_versions(PyObject* const* items, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    TensorImpl* tensor = implementation_at(items, i, count);
    if (tensor == nullptr) {
      return false;
    }
    if (!tensor->is_inference()) {  // those have no versions
      tensor->bump_version();
    }
  }
  return true;
}

uint16_t type_number(const TensorImpl& tensor) {
  return static_cast<uint16_t>(c10::typeMetaToScalarType(tensor.dtype()));
}

SeenTensor seen_now(const TensorImpl& tensor) {
  c10::StorageImpl* storage = tensor.unsafe_storage().unsafeGetStorageImpl();
  return {&tensor, storage, storage->mutable_data(), tensor.storage_offset(), tensor.numel(), tensor.key_set().raw_repr(),
          type_number(tensor)};
}

bool remember(PyObject* object, SeenParameter* out) {
  const TensorImpl& tensor = *implementation(object);
  const at::Tensor* found = gradient(tensor);
  if (found == nullptr) {
    return false;
  }
  const TensorImpl& grad = *found->unsafeGetTensorImpl();
  if (!is_plain(tensor) || !is_plain(grad) || !tensor.is_contiguous() || !grad.is_contiguous()) {
    return false;
  }
  try {
    *out = {seen_now(tensor), seen_now(grad), tensor.autograd_meta()};
  } catch (const c10::Error&) {
    return false;
  }
  return true;
}

// Whether `tensor` lies as `seen`. Where it is contiguous its shape does not matter: a gradient has that of its parameter.
bool lies_as(const TensorImpl& tensor, const SeenTensor& seen) {
  c10::StorageImpl* storage = tensor.unsafe_storage().unsafeGetStorageImpl();
  return tensor.key_set().raw_repr() == seen.keys && storage == seen.storage && storage->mutable_data() == seen.data &&
         tensor.storage_offset() == seen.offset && tensor.numel() == seen.numel && type_number(tensor) == seen.type &&
         tensor.is_contiguous();
}

// What lies_as() reads: sizes and strides are in the middle.
void prefetch_ends(const void* tensor) {
  const char* begin = static_cast<const char*>(tensor);
  const char* end = begin + sizeof(TensorImpl);
  __builtin_prefetch(begin);
  __builtin_prefetch(begin + 48);
  __builtin_prefetch(end - 48);
  __builtin_prefetch(end - 1);
}

// All addresses are known, so no load waits for another.
bool lies_as_seen(PyObject* const* items, const SeenParameter* seen, int64_t i, int64_t count) {
  constexpr int64_t ahead = 8;
  if (i + ahead < count) {
    const SeenParameter& later = seen[i + ahead];
    __builtin_prefetch(items[i + ahead]);
    prefetch_ends(later.param.tensor);
    __builtin_prefetch(later.autograd);
    prefetch_ends(later.grad.tensor);
  }
  const TensorImpl& tensor = *implementation(items[i]);
  try {
    if (!lies_as(tensor, seen[i].param) || tensor.autograd_meta() != seen[i].autograd) {
      return false;
    }
    const at::Tensor& grad = static_cast<const torch::autograd::AutogradMeta*>(seen[i].autograd)->grad_;
    return grad.defined() && lies_as(*grad.unsafeGetTensorImpl(), seen[i].grad);
  } catch (const c10::Error&) {  // of memory that must not be written to; whoever looks again says so
    return false;
  }
}

const TensorAccess access{view, grad, prefetch, increment_versions, remember, lies_as_seen};

}  // namespace

void bind_tensor_access(pybind11::module_& m) {
  m.def("tensor_access", [] { return pybind11::capsule(&access, TENSOR_ACCESS_NAME); });
}

}  // namespace pyseq
