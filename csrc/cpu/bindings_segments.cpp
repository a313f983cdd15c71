// Tables of addresses from Python lists of tensors: those of cpu/segments.h and of cpu/grad_norm.h.
#include <pybind11/pybind11.h>

#include <cstring>
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

class AdamTable {
 public:
  // False where a tensor is not as the fast way needs it.
  bool read(const py::tuple& lists) {
    const Items params(lists[0]);
    if (!params.valid || !take_columns(lists, params.count)) {
      return false;
    }
    rows_.reserve(static_cast<size_t>(params.count));
    for (int64_t i = 0; i < params.count; ++i) {
      if (!read_row(i)) {
        return false;
      }
    }
    if (columns_[2].type != TensorType::bf16) {
      rows_.resize(static_cast<size_t>(merge_rows(rows_.data(), static_cast<int64_t>(rows_.size()), sizes_)));
    }
    return true;
  }

  const std::vector<AdamRow>& rows() const { return rows_; }

  py::tuple described() const {
    py::list types;
    for (const TensorType type : types_) {
      types.append(static_cast<int>(type));
    }
    return py::make_tuple(types, device_.device_type, device_.device_id);
  }

 private:
  bool take_columns(const py::tuple& lists, int64_t count) {
    for (int place = 0; place < columns_of_table; ++place) {
      if (lists[static_cast<size_t>(place)].is_none()) {
        continue;
      }
      const Items items(lists[static_cast<size_t>(place)]);
      if (!items.valid || items.count != count) {
        return false;
      }
      columns_.push_back({place, items.items});
    }
    return columns_.size() >= 4 && columns_[3].place == 3;
  }

  bool read_row(int64_t i) {
    TensorView param, view;
    AdamRow row{};
    auto* addresses = reinterpret_cast<uintptr_t*>(&row);
    for (Column& column : columns_) {
      TensorView& here = column.place == 0 ? param : view;
      if (!TensorReader::get().read(column.items[i], &here) || !fits(column, here, i == 0)) {
        return false;
      }
      if (column.place == 0 ? !is_dense(param) : !same_layout(here, param)) {
        return false;
      }
      addresses[column.place] = here.address();
    }
    row.numel = param.numel();
    row.key = i;
    for (const Column& column : columns_) {
      if (row.numel > 0 && addresses[column.place] == 0) {
        return false;
      }
    }
    if (row.numel > 0) {
      rows_.push_back(row);
    }
    return true;
  }

  bool fits(Column& column, const TensorView& view, bool first) {
    const TensorType type = type_of(view);
    if (first) {
      if (column.place == 0) {
        device_ = view;
      }
      column.type = types_[column.place] = type;
      sizes_.of[column.place] = size_of(type);
    }
    return type == column.type && type != TensorType::other && same_device(view, device_);
  }

  std::vector<Column> columns_;
  TensorType types_[columns_of_table] = {TensorType::other, TensorType::other, TensorType::other,
                                         TensorType::other, TensorType::other, TensorType::other};
  RowElementSizes sizes_{};
  TensorView device_{};
  std::vector<AdamRow> rows_;
};

py::object adam_table(const py::tuple& lists, uintptr_t before, int64_t rows_before) {
  if (lists.size() != columns_of_table) {
    throw std::invalid_argument("an update has six lists");
  }
  AdamTable table;
  if (!TensorReader::get().available() || !table.read(lists)) {
    return py::none();
  }
  const size_t count = table.rows().size(), bytes = count * sizeof(AdamRow);
  const auto* old = pointer<const void>(before, 8, rows_before, "the table before");
  const bool same = static_cast<int64_t>(count) == rows_before &&
                    (count == 0 || std::memcmp(old, table.rows().data(), bytes) == 0);
  py::object rows = py::none();
  if (!same) {
    rows = py::bytearray(reinterpret_cast<const char*>(table.rows().data()), bytes);
  }
  return py::make_tuple(rows, table.described());
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
  m.def("adam_table", &adam_table,
        "The table of an update from its six lists (None for what there is not): ({rows as bytes, or None where they "
        "are those of the table before}, {dtype numbers, device type and index of DLPack}). None where a tensor needs a "
        "closer look.",
        py::arg("lists"), py::arg("before"), py::arg("rows_before"));
  m.def("norm_table", &norm_table,
        "Writes {address, elements, dtype} of each tensor of a list, and returns a mask of the dtypes and DLPack's device "
        "type and index. None where a tensor needs a closer look.",
        py::arg("tensors"), py::arg("out"));
}
