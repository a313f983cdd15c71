// Tables of addresses from Python lists of tensors: those of cpu/segments.h and of cpu/grad_norm.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cpu/bindings.h"
#include "cpu/grad_norm.h"
#include "cpu/python_tensor.h"
#include "cpu/segments.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

constexpr int columns_of_table = 6;
constexpr int longest_pause = 1024;

// The items of a Python list or tuple.
struct Items {
  PyObject* const* items = nullptr;
  int64_t count = 0;
  bool valid = false;

  explicit Items(py::handle sequence) {
    if (PyList_CheckExact(sequence.ptr()) || PyTuple_CheckExact(sequence.ptr())) {
      items = PySequence_Fast_ITEMS(sequence.ptr());
      count = PySequence_Fast_GET_SIZE(sequence.ptr());
      valid = true;
    }
  }
};

bool same_device(const TensorView& a, const TensorView& b) {
  return a.device_type == b.device_type && a.device_id == b.device_id;
}

// A column of the table as it is read: its address goes to `column` of each row.
struct Column {
  int place;
  PyObject* const* items;
  TensorType type = TensorType::other;
};

py::bytearray as_bytes(const void* data, size_t bytes) { return {static_cast<const char*>(data), bytes}; }

// Where the tensors of an update lie, kept from step to step.
class AdamTable {
 public:
  // False where a tensor is not as the fast way needs it: nothing is kept then.
  bool read(const py::tuple& lists) {
    if (lists.size() != columns_of_table) {
      throw std::invalid_argument("an update has six lists");
    }
    *this = AdamTable();
    if (TensorReader::get().available() && read_lists(lists)) {
      return true;
    }
    *this = AdamTable();
    return false;
  }

  // Takes in the gradients of `params`. False where more than gradients has changed since read().
  bool follow(const py::list& params) {
    const Items items(params);
    if (tensors_.empty() || items.count != static_cast<int64_t>(tensors_.size())) {
      return false;
    }
    moved_ = false;
    for (int64_t i = 0; i < items.count; ++i) {
      if (lies_as_seen(items, i)) {
        continue;
      }
      TensorReader::get().prefetch(items.items, i, items.count);
      if (!follow_row(items.items[i], static_cast<size_t>(i))) {
        *this = AdamTable();  // the rows before this one are new, those that were made of them are not
        return false;
      }
    }
    if (moved_) {
      join();
    } else if (seen_.empty() && pause_-- == 0) {
      remember(items);
    }
    return true;
  }

  // Whether a gradient lies elsewhere than before the last follow().
  bool moved() const { return moved_; }

  // As pyseq/ops/segments.py has them.
  py::bytearray rows() const { return as_bytes(rows_.data(), rows_.size() * sizeof(AdamRow)); }

  // The rows of cpu/grad_norm.h of the gradients.
  py::bytearray norm_rows() const {
    std::vector<NormRow> rows;
    rows.reserve(tensors_.size());
    for (const AdamRow& tensor : tensors_) {
      rows.push_back({tensor.grad, tensor.numel, static_cast<int64_t>(types_[1])});
    }
    return as_bytes(rows.data(), rows.size() * sizeof(NormRow));
  }

  bool same_rows(uintptr_t address, int64_t count) const {
    const auto* other = pointer<const void>(address, 8, count, "the other table");
    return count == static_cast<int64_t>(rows_.size()) &&
           (count == 0 || std::memcmp(other, rows_.data(), rows_.size() * sizeof(AdamRow)) == 0);
  }

  py::tuple described() const {
    py::list types;
    for (const TensorType type : types_) {
      types.append(static_cast<int>(type));
    }
    return py::make_tuple(types, device_type_, device_id_);
  }

 private:
  bool read_lists(const py::tuple& lists) {
    const Items params(lists[0]);
    std::vector<Column> columns;
    if (!params.valid || !take_columns(lists, params.count, &columns)) {
      return false;
    }
    tensors_.reserve(static_cast<size_t>(params.count));
    layouts_.reserve(static_cast<size_t>(params.count));
    for (int64_t i = 0; i < params.count; ++i) {
      if (!read_row(&columns, i, params.count)) {
        return false;
      }
    }
    join();
    return true;
  }

  static bool take_columns(const py::tuple& lists, int64_t count, std::vector<Column>* columns) {
    for (int place = 0; place < columns_of_table; ++place) {
      if (lists[static_cast<size_t>(place)].is_none()) {
        continue;
      }
      const Items items(lists[static_cast<size_t>(place)]);
      if (!items.valid || items.count != count) {
        return false;
      }
      columns->push_back({place, items.items});
    }
    return columns->size() >= 4 && (*columns)[3].place == 3;
  }

  bool read_row(std::vector<Column>* columns, int64_t i, int64_t count) {
    TensorView param, view;
    AdamRow row{};
    auto* addresses = reinterpret_cast<uintptr_t*>(&row);
    for (Column& column : *columns) {
      TensorView& here = column.place == 0 ? param : view;
      TensorReader::get().prefetch(column.items, i, count);
      if (!TensorReader::get().read(column.items[i], &here)) {
        return false;
      }
      if (i == 0) {
        begin_column(column.place, here);
      }
      if (!fits(column.place, here) || (column.place == 0 ? !is_dense(param) : !same_layout(here, param))) {
        return false;
      }
      addresses[column.place] = here.address();
    }
    row.numel = param.numel();
    row.key = i;
    for (const Column& column : *columns) {
      if (row.numel > 0 && addresses[column.place] == 0) {
        return false;
      }
    }
    tensors_.push_back(row);
    layouts_.push_back(layout_hash(param));
    return true;
  }

  void begin_column(int place, const TensorView& first) {
    if (place == 0) {
      device_type_ = first.device_type;
      device_id_ = first.device_id;
    }
    types_[place] = type_of(first);
    sizes_.of[place] = size_of(types_[place]);
  }

  bool fits(int place, const TensorView& view) const {
    const TensorType type = type_of(view);
    return type == types_[place] && type != TensorType::other && view.device_type == device_type_ &&
           view.device_id == device_id_;
  }

  // Takes in the gradient of tensor i. False where something else than it is new.
  bool follow_row(PyObject* param, size_t i) {
    const TensorReader& reader = TensorReader::get();
    AdamRow& row = tensors_[i];
    TensorView before, view;
    const bool stays = reader.read(param, &before) && fits(0, before) && layout_hash(before) == layouts_[i] &&
                       before.address() == reinterpret_cast<uintptr_t>(row.param);
    const auto grad = py::reinterpret_steal<py::object>(stays ? reader.grad_of(param) : nullptr);
    if (!grad) {
      PyErr_Clear();
      return false;
    }
    if (!reader.read(grad.ptr(), &view) || !fits(1, view) || !same_layout(view, before) ||
        (row.numel > 0 && view.address() == 0)) {
      return false;
    }
    void* const address = reinterpret_cast<void*>(view.address());
    moved_ = moved_ || row.grad != address;
    row.grad = address;
    return true;
  }

  // Gradients that are where they were are likely to stay there: from now on all that is asked is whether they have.
  void remember(const Items& params) {
    pause_ = next_pause_;
    seen_.resize(static_cast<size_t>(params.count));
    for (int64_t i = 0; i < params.count; ++i) {
      if (!TensorReader::get().remember(params.items[i], &seen_[static_cast<size_t>(i)])) {
        forget();
        return;
      }
    }
  }

  // New gradients may lie at old addresses, and to remember them every time would be in vain.
  void forget() {
    seen_.clear();
    next_pause_ = std::min(2 * next_pause_, longest_pause);
  }

  // False where it is not known how the parameter and its gradient lay, or they lie otherwise now.
  bool lies_as_seen(const Items& params, int64_t i) {
    if (seen_.empty()) {
      return false;
    }
    const bool lies = TensorReader::get().lies_as_seen(params.items, seen_.data(), i, params.count);
    if (!lies) {
      forget();
    }
    return lies;
  }

  void join() {
    rows_.clear();
    rows_.reserve(tensors_.size());
    for (const AdamRow& tensor : tensors_) {
      if (tensor.numel > 0) {
        rows_.push_back(tensor);
      }
    }
    if (types_[2] != TensorType::bf16) {
      rows_.resize(static_cast<size_t>(merge_rows(rows_.data(), static_cast<int64_t>(rows_.size()), sizes_)));
    }
  }

  std::vector<AdamRow> tensors_;  // each tensor, empty ones too
  std::vector<uint64_t> layouts_;  // of each parameter
  std::vector<SeenParameter> seen_;  // how each lay since remember(); empty where one has moved since
  int pause_ = 0, next_pause_ = 1;  // steps that gradients are to stay where they are before the next remember()
  std::vector<AdamRow> rows_;  // without the empty ones, and joined
  TensorType types_[columns_of_table] = {TensorType::other, TensorType::other, TensorType::other,
                                         TensorType::other, TensorType::other, TensorType::other};
  RowElementSizes sizes_{};
  int32_t device_type_ = 0, device_id_ = 0;
  bool moved_ = false;
};

bool same_items(const py::list& a, const py::list& b) {
  const Items left(a), right(b);
  return left.valid && right.valid && left.count == right.count &&
         (left.count == 0 ||
          std::memcmp(left.items, right.items, static_cast<size_t>(left.count) * sizeof(PyObject*)) == 0);
}

void use_tensor_access(const std::optional<py::capsule>& access) {
  if (access.has_value() && std::strcmp(access->name(), TENSOR_ACCESS_NAME) != 0) {
    throw std::invalid_argument("pyseq._torch was not built together with pyseq._core: build both again");
  }
  TensorReader::get().use(access.has_value() ? access->get_pointer<const TensorAccess>() : nullptr);
}

bool increment_versions(const py::handle& tensors) {
  const Items items(tensors);
  return items.valid && TensorReader::get().increment_versions(items.items, items.count);
}

py::object norm_table(const py::handle& tensors, uintptr_t out) {
  const Items items(tensors);
  const TensorReader& reader = TensorReader::get();
  if (!items.valid || items.count == 0 || !reader.available()) {
    return py::none();
  }
  auto* rows = pointer<NormRow>(out, 8, items.count, "out");
  TensorView first{}, view;
  int types = 0;  // a bit for each that is there
  for (int64_t i = 0; i < items.count; ++i) {
    reader.prefetch(items.items, i, items.count);
    if (!reader.read(items.items[i], &view) || !is_dense(view)) {
      return py::none();
    }
    if (i == 0) {
      first = view;
    }
    const TensorType type = type_of(view);
    rows[i] = {reinterpret_cast<const void*>(view.address()), view.numel(), static_cast<int64_t>(type)};
    const bool summable = type != TensorType::other && type != TensorType::i16;
    if (!summable || !same_device(view, first) || (rows[i].data == nullptr && rows[i].numel > 0)) {
      return py::none();
    }
    types |= 1 << static_cast<int>(type);
  }
  return py::make_tuple(types, first.device_type, first.device_id);
}

}  // namespace

void bind_segments(py::module_& m) {
  py::class_<AdamTable>(m, "AdamTable", "Where the tensors of an update lie, kept from step to step.")
      .def(py::init<>())
      .def("read", &AdamTable::read, "Takes in six lists (None for what there is not). False where one needs a closer look.",
           py::arg("lists"))
      .def("follow", &AdamTable::follow,
           "Takes in the gradients of `params`. False where anything but gradients is not as read() found it. The lists "
           "beside params and gradients are not looked at.",
           py::arg("params"))
      .def("moved", &AdamTable::moved, "Whether a gradient lies elsewhere than before the last follow().")
      .def("same_rows", &AdamTable::same_rows, py::arg("address"), py::arg("rows"))
      .def("rows", &AdamTable::rows, "The table of pyseq/ops/segments.py.")
      .def("norm_rows", &AdamTable::norm_rows, "{address, elements, dtype} of each gradient.")
      .def("described", &AdamTable::described, "{dtype numbers of the columns, device type and index of DLPack}.");
  m.def("same_items", &same_items, "Whether two lists have the very same objects, without a look at any.", py::arg("a"),
        py::arg("b"));
  m.def("use_tensor_access", &use_tensor_access,
        "Reads tensors as pyseq._torch does from now on; as DLPack does, with None.", py::arg("access").none(true));
  m.def("increment_versions", &increment_versions,
        "As torch.autograd.graph.increment_version. False: that has to be called, nothing is known of how far this got.",
        py::arg("tensors"));
  m.def("norm_table", &norm_table,
        "Writes {address, elements, dtype} of each tensor of a list, and returns a mask of the dtypes and DLPack's device "
        "type and index. None where a tensor needs a closer look.",
        py::arg("tensors"), py::arg("out"));
}
