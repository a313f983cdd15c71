// Where the tensors of a Python list lie: by the DLPack exchange table that torch publishes, or better by pyseq._torch, where
// that was built for this torch. Either takes some nanoseconds a tensor, an attribute a tenth of a microsecond. No header of
// torch or DLPack is needed here: the few structures are the ABI of DLPack 1.x
// (https://dmlc.github.io/dlpack/latest/c_api.html).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace pyseq {

// DLTensor.
struct TensorView {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t dims;
  uint8_t type_code;
  uint8_t bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;

  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data) + byte_offset; }

  int64_t numel() const {
    int64_t product = 1;
    for (int d = 0; d < dims; ++d) {
      product *= shape[d];
    }
    return product;
  }
};

// The dtypes of this core by number (csrc/cpu/dtype.h), then fp64 and int16.
enum class TensorType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3, i16 = 4, other = -1 };

static inline TensorType type_of(const TensorView& view) {
  if (view.lanes != 1) {
    return TensorType::other;
  }
  switch (view.type_code * 256 + view.bits) {
    case 2 * 256 + 32:
      return TensorType::f32;
    case 4 * 256 + 16:
      return TensorType::bf16;
    case 2 * 256 + 16:
      return TensorType::f16;
    case 2 * 256 + 64:
      return TensorType::f64;
    case 0 * 256 + 16:
      return TensorType::i16;
    default:
      return TensorType::other;
  }
}

static inline int64_t size_of(TensorType type) {
  return type == TensorType::f64 ? 8 : type == TensorType::f32 ? 4 : 2;
}

// A contiguous tensor as it was found once, in torch's own words.
struct SeenTensor {
  const void* tensor;  // is not compared: where to load the others from ahead of time
  const void *storage, *data;
  int64_t offset, numel;
  uint64_t keys;
  uint16_t type;
};

struct SeenParameter {
  SeenTensor param, grad;
  const void* autograd;  // what leads from one to the other
};

// A way to tensors. Objects are of exactly torch.Tensor or Parameter, but for those of prefetch(), which may be anything.
struct TensorAccess {
  // False for what has no memory of its own. The view is good while the tensor is.
  bool (*view)(PyObject* object, TensorView* out);
  // The .grad, a new reference; null with a Python error where there is none to be had.
  PyObject* (*grad)(PyObject* object);
  // Begins to load what view() and grad() will need of items[i + some]. Objects that nothing has touched since the last step
  // are not in the cache, and their loads would wait for each other.
  void (*prefetch)(PyObject* const* items, int64_t i, int64_t count);
  // Tells autograd that the tensors change. False where it has to be told by torch's own function; null if always.
  bool (*increment_versions)(PyObject* const* items, int64_t count);
  // Notes how a parameter and its gradient lie, if both are contiguous; false if not. Null if always.
  bool (*remember)(PyObject* object, SeenParameter* out);
  // Whether items[i] and its .grad lie as in seen[i]. Begins to load what later items will need. Null if never.
  bool (*lies_as_seen)(PyObject* const* items, const SeenParameter* seen, int64_t i, int64_t count);
};

// Of the capsule in which pyseq._torch hands out its own. To be changed with the structure.
constexpr char TENSOR_ACCESS_NAME[] = "pyseq.tensor_access 3";

// Reads torch tensors; everything under the GIL.
class TensorReader {
 public:
  // The one reader.
  static TensorReader& get();

  // False where this torch publishes no exchange table (before 2.10), and there is no pyseq._torch for it.
  bool available() const { return access_ != nullptr; }

  // Takes a better way than DLPack; null: that again.
  void use(const TensorAccess* access) { access_ = access == nullptr ? by_dlpack_ : access; }

  // False for what is not a plain torch.Tensor or Parameter with memory of its own. The view is good while the tensor is.
  bool read(PyObject* object, TensorView* view) const {
    return (Py_TYPE(object) == tensor_ || Py_TYPE(object) == parameter_) && access_->view(object, view);
  }

  // The others are those of TensorAccess.
  PyObject* grad_of(PyObject* object) const { return access_->grad(object); }
  void prefetch(PyObject* const* items, int64_t i, int64_t count) const { access_->prefetch(items, i, count); }
  bool increment_versions(PyObject* const* items, int64_t count) const {
    return access_ != nullptr && access_->increment_versions != nullptr && access_->increment_versions(items, count);
  }
  bool remember(PyObject* object, SeenParameter* out) const {
    return access_->remember != nullptr && access_->remember(object, out);
  }
  bool lies_as_seen(PyObject* const* items, const SeenParameter* seen, int64_t i, int64_t count) const {
    return access_->lies_as_seen != nullptr && access_->lies_as_seen(items, seen, i, count);
  }

 private:
  TensorReader();

  const TensorAccess* by_dlpack_ = nullptr;
  const TensorAccess* access_ = nullptr;
  PyTypeObject* tensor_ = nullptr;
  PyTypeObject* parameter_ = nullptr;
};

// Whether the elements fill numel() places in memory, in whatever order.
bool is_dense(const TensorView& view);

// Whether the same index means the same place in both.
bool same_layout(const TensorView& a, const TensorView& b);

// A number that tensors of the same layout share, and others do not, but for one in 2^64.
uint64_t layout_hash(const TensorView& view);

}  // namespace pyseq
