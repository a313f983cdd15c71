// pyseq._core.data: numpy arrays in and out. An array of the wrong type, shape or content is an exception here;
// the functions behind it trust what they are given. They run without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "data/batching.h"
#include "data/collation.h"
#include "data/token_blocks.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using Int64Array = py::array_t<int64_t>;

void check_layout(const py::array& array, const char* name, int ndim) {
  constexpr int required = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (array.ndim() != ndim || (array.flags() & required) != required)
    throw py::value_error(std::string(name) + " must be a contiguous, aligned array of " + std::to_string(ndim) +
                          " dimension(s)");
}

const int64_t* int64_data(const py::array& array, const char* name, int ndim = 1) {
  if (!array.dtype().equal(py::dtype::of<int64_t>()))
    throw py::type_error(std::string(name) + " must be int64, not " + std::string(py::str(array.dtype())));
  check_layout(array, name, ndim);
  return static_cast<const int64_t*>(array.data());
}

void check_sizes(const int64_t* sizes, int64_t n, const char* name) {
  int64_t left = std::numeric_limits<int64_t>::max();
  for (int64_t i = 0; i < n; ++i) {
    if (sizes[i] < 0 || sizes[i] > left)
      throw py::value_error(std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(sizes[i]) +
                            (sizes[i] < 0 ? " is negative" : " makes the sum overflow"));
    left -= sizes[i];
  }
}

pyseq::TokenType token_type(const py::dtype& type) {
  using pyseq::TokenType;
  const bool is_signed = type.kind() == 'i';
  const bool native = type.byteorder() == '=' || type.byteorder() == '|';
  if (native && (is_signed || type.kind() == 'u')) switch (type.itemsize()) {
      case 1: return is_signed ? TokenType::kI8 : TokenType::kU8;
      case 2: return is_signed ? TokenType::kI16 : TokenType::kU16;
      case 4: return is_signed ? TokenType::kI32 : TokenType::kU32;
      case 8: return is_signed ? TokenType::kI64 : TokenType::kU64;
    }
  throw py::type_error("tokens must be integers in the byte order of this machine, not " + std::string(py::str(type)));
}

py::tuple batch_by_size(const py::array& num_tokens, int64_t max_tokens, int64_t max_sentences, int64_t multiple,
                        bool packed) {
  const int64_t* data = int64_data(num_tokens, "num_tokens");
  const int64_t n = num_tokens.size();
  if (multiple < 1) throw py::value_error("multiple must be at least 1, not " + std::to_string(multiple));
  Int64Array ends(n);
  int64_t* out = ends.mutable_data();
  pyseq::Batches batches;
  {
    py::gil_scoped_release release;
    batches = pyseq::batch_by_size(data, n, {max_tokens, max_sentences, multiple, packed}, out);
  }
  ends.resize({batches.count});
  return py::make_tuple(std::move(ends), batches.too_long);
}

void collate(const py::array& tokens, const py::array& starts, const py::array& lengths, py::array out, int64_t pad,
             bool left, bool rotate, std::optional<int64_t> eos) {
  check_layout(tokens, "tokens", 1);
  const pyseq::TokenRows rows{tokens.data(), token_type(tokens.dtype()), int64_data(starts, "starts"),
                              int64_data(lengths, "lengths"), starts.size()};
  if (lengths.size() != rows.count) throw py::value_error("starts and lengths differ in length");
  int64_data(out, "out", 2);
  auto* target = static_cast<int64_t*>(out.mutable_data());
  const int64_t out_rows = out.shape(0), width = out.shape(1), size = tokens.size();
  if (out_rows < rows.count) throw py::value_error("out has fewer rows than there are samples");
  const int64_t outside = pyseq::first_row_outside(rows, size);
  if (outside >= 0)
    throw py::index_error("row " + std::to_string(outside) + ": start " + std::to_string(rows.starts[outside]) +
                          ", length " + std::to_string(rows.lengths[outside]) + " is outside the " +
                          std::to_string(size) + " tokens");
  for (int64_t r = 0; r < rows.count; ++r)
    if (rows.lengths[r] > width)
      throw py::value_error("row " + std::to_string(r) + " is longer than out is wide: " +
                            std::to_string(rows.lengths[r]) + " > " + std::to_string(width));
  py::gil_scoped_release release;
  pyseq::collate(rows, {pad, left, rotate, eos.has_value(), eos.value_or(0)}, target, out_rows, width);
}

Int64Array slice_indices(const py::array& sizes, pyseq::BreakMode mode, int64_t block_size, int64_t document_sep_len) {
  static_assert(sizeof(pyseq::Slice) == 2 * sizeof(int64_t), "a row of the result is a Slice");
  const int64_t* data = int64_data(sizes, "sizes");
  const int64_t n = sizes.size();
  check_sizes(data, n, "sizes");
  if (mode != pyseq::BreakMode::kEos && block_size < 1)
    throw py::value_error("block_size must be at least 1, not " + std::to_string(block_size));
  Int64Array slices({pyseq::block_capacity(data, n, mode, block_size), int64_t{2}});
  auto* out = reinterpret_cast<pyseq::Slice*>(slices.mutable_data());
  int64_t count;
  {
    py::gil_scoped_release release;
    count = pyseq::slice_indices(data, n, mode, block_size, document_sep_len, out);
  }
  slices.resize({count, int64_t{2}});
  return slices;
}

void check_slices(const pyseq::Slice* slices, int64_t count, int64_t total) {
  pyseq::Slice before{0, 0};
  for (int64_t i = 0; i < count; ++i) {
    const pyseq::Slice block = slices[i];
    if (block.begin < before.begin || block.end < before.end || block.end < block.begin || block.end > total)
      throw py::value_error("slice " + std::to_string(i) + " (" + std::to_string(block.begin) + ", " +
                            std::to_string(block.end) + ") is out of order or outside the " + std::to_string(total) +
                            " tokens");
    before = block;
  }
}

Int64Array block_to_dataset_index(const py::array& sizes, const py::array& slices) {
  static_assert(sizeof(pyseq::BlockPosition) == 3 * sizeof(int64_t), "a row of the result is a BlockPosition");
  const int64_t* data = int64_data(sizes, "sizes");
  const int64_t n = sizes.size();
  check_sizes(data, n, "sizes");
  const auto* blocks = reinterpret_cast<const pyseq::Slice*>(int64_data(slices, "slices", 2));
  if (slices.shape(1) != 2) throw py::value_error("slices must have two columns");
  const int64_t count = slices.shape(0);
  if (count > 0 && n == 0) throw py::value_error("slices of no sentences");
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += data[i];
  check_slices(blocks, count, total);
  Int64Array positions({count, int64_t{3}});
  auto* out = reinterpret_cast<pyseq::BlockPosition*>(positions.mutable_data());
  {
    py::gil_scoped_release release;
    pyseq::block_to_dataset_index(data, n, blocks, count, out);
  }
  return positions;
}

}  // namespace

void bind_data(py::module_& m) {
  py::enum_<pyseq::BreakMode>(m, "BreakMode")
      .value("none", pyseq::BreakMode::kNone)
      .value("complete", pyseq::BreakMode::kComplete)
      .value("complete_doc", pyseq::BreakMode::kCompleteDoc)
      .value("eos", pyseq::BreakMode::kEos);
  m.def("batch_by_size", &batch_by_size, "num_tokens"_a.noconvert(), "max_tokens"_a, "max_sentences"_a, "multiple"_a,
        "packed"_a, "(end offsets of the batches, position of the first sample that is too long or -1)");
  m.def("collate", &collate, "tokens"_a.noconvert(), "starts"_a.noconvert(), "lengths"_a.noconvert(),
        "out"_a.noconvert(), "pad"_a, "left"_a, "rotate"_a, "eos"_a,
        "Writes rows of tokens, padded, into the int64 matrix out.");
  m.def("slice_indices", &slice_indices, "sizes"_a.noconvert(), "mode"_a, "block_size"_a, "document_sep_len"_a,
        "[blocks, 2]: begin and end of each block in the stream of all tokens");
  m.def("block_to_dataset_index", &block_to_dataset_index, "sizes"_a.noconvert(), "slices"_a.noconvert(),
        "[blocks, 3]: first sentence, offset in it, last sentence of each block");
}
