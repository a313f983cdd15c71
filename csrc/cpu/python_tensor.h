// Where the tensors of a Python list lie, read through the DLPack exchange table that torch publishes: some nanoseconds a
// tensor, where an attribute takes a tenth of a microsecond. No header of torch or DLPack is needed: the few structures
// are the ABI of DLPack 1.x (https://dmlc.github.io/dlpack/latest/c_api.html).
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

// Reads torch tensors; everything under the GIL.
class TensorReader {
 public:
  // The one reader. It cannot read where this torch publishes no exchange table (before 2.10).
  static TensorReader& get();

  bool available() const { return read_ != nullptr; }

  // False for what is not a plain torch.Tensor or Parameter with memory of its own. The view is good while the tensor is.
  bool read(PyObject* object, TensorView* view) const;

  // The .grad of what read() takes, a new reference; null with a Python error where there is none to be had.
  PyObject* grad_of(PyObject* object) const {
    return Py_TYPE(grad_)->tp_descr_get(grad_, object, reinterpret_cast<PyObject*>(Py_TYPE(object)));
  }

  // Begins to load what read() will need of items[i + some]. Objects that nothing has touched since the last step are not
  // in the cache, and their loads would wait for each other.
  void prefetch(PyObject* const* items, int64_t i, int64_t count) const;

 private:
  TensorReader();

  using Read = int (*)(void* object, TensorView* out);
  Read read_ = nullptr;
  PyTypeObject* tensor_ = nullptr;
  PyTypeObject* parameter_ = nullptr;
  PyObject* grad_ = nullptr;  // the descriptor of Tensor.grad: half the time of looking the attribute up by its name
};

// Whether the elements fill numel() places in memory, in whatever order.
bool is_dense(const TensorView& view);

// Whether the same index means the same place in both.
bool same_layout(const TensorView& a, const TensorView& b);

// A number that tensors of the same layout share, and others do not, but for one in 2^64.
uint64_t layout_hash(const TensorView& view);

}  // namespace pyseq
