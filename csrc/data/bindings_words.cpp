// The words of text for pyseq._core.data: bytes in, numpy arrays and dicts out. The text is valid UTF-8.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/words.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

py::dict as_dict(const pyseq::WordCounts& found) {
  py::dict counts;
  for (int64_t i = 0; i < found.words.size(); ++i) counts[py::str(std::string(found.words.word(i)))] = found.counts[i];
  return counts;
}

py::array_t<int32_t> as_array(std::vector<int32_t> values) {
  auto* kept = new std::vector<int32_t>(std::move(values));
  const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<int32_t>*>(p); });
  return py::array_t<int32_t>(kept->size(), kept->data(), owner);
}

std::string_view view(const py::bytes& text) { return static_cast<std::string_view>(text); }

py::tuple count_words(const py::bytes& text) {
  const std::string_view characters = view(text);
  pyseq::WordCounts found;
  {
    py::gil_scoped_release release;
    found = pyseq::count_words(characters);
  }
  return py::make_tuple(as_dict(found), found.lines);
}

struct Vocabulary {
  pyseq::WordTable words;
  std::vector<int32_t> ids;

  explicit Vocabulary(const py::dict& from) {
    for (const auto& item : from) {
      const auto word = item.first.cast<std::string>();
      if (words.add(word) != static_cast<int64_t>(ids.size())) throw py::value_error("'" + word + "' is there twice");
      ids.push_back(item.second.cast<int32_t>());
    }
  }

  py::tuple encode_lines(const py::bytes& text, int32_t unknown, std::optional<int32_t> eos, bool reverse) const {
    const std::string_view characters = view(text);
    pyseq::EncodedLines out;
    {
      py::gil_scoped_release release;
      out = pyseq::encode_lines(characters, words, ids.data(), {unknown, eos.has_value(), eos.value_or(0), reverse});
    }
    return py::make_tuple(as_array(std::move(out.tokens)), as_array(std::move(out.sizes)), as_dict(out.replaced));
  }
};

}  // namespace

void bind_words(py::module_& m) {
  m.def("count_words", &count_words, "text"_a, "({word: count}, number of lines)");
  py::class_<Vocabulary>(m, "Vocabulary", "Words and their ids.")
      .def(py::init<const py::dict&>(), "ids"_a)
      .def("encode_lines", &Vocabulary::encode_lines, "text"_a, "unknown"_a, "eos"_a, "reverse"_a,
           "(int32 tokens of all lines, int32 tokens of each, {word that is not in the vocabulary: count})");
}
