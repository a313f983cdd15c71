// The bindings of what generation runs at every step: checks at the border, nothing else.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <vector>

#include "cpu/beam_step.h"
#include "cpu/bindings.h"
#include "cpu/decoder_step.h"
#include "cpu/isa.h"
#include "cpu/linear_top_candidates.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

PackedLinear packed(uintptr_t panels, uintptr_t bias, int64_t depth, int64_t columns, bool bf16, const char* name) {
  if (bf16 && !has_bf16_products()) {
    throw std::invalid_argument("weights in bf16, and the instruction set in use does not multiply them");
  }
  PackedLinear result{nullptr, nullptr, depth, columns, bf16};
  const int64_t count = result.panel_count() * panel_width;
  result.panels = pointer<const float>(panels, 4, count * result.words(), name);
  result.bias = bias == 0 ? nullptr : pointer<const float>(bias, 4, count, name);
  return result;
}

void top_candidates(uintptr_t x, int64_t rows, uintptr_t panels, uintptr_t bias, int64_t depth, int64_t columns,
                    bool bf16, int64_t count, uintptr_t adjusted, uintptr_t adjustment, int64_t adjustments,
                    int64_t filler, uintptr_t values, uintptr_t tokens, uintptr_t log_sum_exp, int threads) {
  if (rows < 0 || depth < 1 || count < 1 || count > columns || adjustments < 0) {
    throw std::invalid_argument("sizes must not be negative, and the count of candidates from 1 to the columns");
  }
  const auto* places = pointer<const int64_t>(adjusted, 8, adjustments, "adjusted");
  if (!std::is_sorted(places, places + adjustments)) {
    throw std::invalid_argument("adjusted columns must ascend");
  }
  const Candidates job{pointer<const float>(x, 4, rows * depth, "x"),
                       rows,
                       packed(panels, bias, depth, columns, bf16, "weights"),
                       count,
                       places,
                       pointer<const float>(adjustment, 4, adjustments, "adjustment"),
                       adjustments,
                       filler,
                       pointer<float>(values, 4, rows * count, "values"),
                       pointer<int64_t>(tokens, 8, rows * count, "columns"),
                       pointer<float>(log_sum_exp, 4, rows, "log_sum_exp")};
  linear_top_candidates(job, threads);
}

// A layer's addresses: the order is that of pyseq/ops/decoder_step.py.
DecoderLayer layer_of(const int64_t* address, const Decoder& decoder) {
  const auto* at = reinterpret_cast<const uintptr_t*>(address);
  const int64_t dim = decoder.dim, inner = decoder.inner;
  const auto norm = [&](int i) {
    return Norm{pointer<const float>(at[i], 4, at[i] ? dim : 0, "norm"),
                pointer<const float>(at[i + 1], 4, at[i + 1] ? dim : 0, "norm")};
  };
  const auto linear = [&](int i, int64_t depth, int64_t columns) {
    return packed(at[i], at[i + 1], depth, columns, decoder.bf16, "weights of a layer");
  };
  DecoderLayer layer{};
  layer.self_norm = norm(0);
  layer.qkv = linear(2, dim, 3 * dim);
  layer.self_out = linear(4, dim, dim);
  layer.final_norm = norm(6);
  layer.fc1 = linear(8, dim, inner);
  layer.fc2 = linear(10, inner, dim);
  if (decoder.attends_to_source) {
    layer.cross_norm = norm(12);
    layer.cross_query = linear(14, dim, dim);
    layer.cross_out = linear(16, dim, dim);
  }
  return layer;
}

constexpr int64_t addresses_per_layer = 18;

void check_cache(const DecoderCache& cache, int64_t rows) {
  for (int64_t t = 0; t < cache.positions; ++t) {
    if (cache.steps[t] == nullptr) {
      throw std::invalid_argument("the keys of a step are null");
    }
  }
  if (cache.step_rows[cache.positions - 1] != rows) {
    throw std::invalid_argument("the last step of the cache has not as many rows as x");
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t t = 0; t < cache.positions; ++t) {
      const int64_t row = cache.ancestors[r * cache.positions + t];
      if (row >= cache.step_rows[t] || (t + 1 == cache.positions && row >= 0 && row != r)) {
        throw std::out_of_range("an ancestor is no row of its step");
      }
    }
  }
}

void check_sources(const DecoderCache& cache, int64_t rows, int64_t sentences, int64_t tokens) {
  for (int64_t s = 0; s < sentences; ++s) {
    if (cache.source_begin[s] < 0 || cache.source_begin[s + 1] < cache.source_begin[s]) {
      throw std::invalid_argument("the first tokens of sentences must ascend");
    }
  }
  if (cache.source_begin[sentences] > tokens) {
    throw std::out_of_range("a sentence has more tokens than the source");
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (cache.sentence[r] < 0 || cache.sentence[r] >= sentences) {
      throw std::out_of_range("a row belongs to no sentence");
    }
  }
}

void step(uintptr_t layers, int64_t layer_count, int64_t dim, int64_t heads, int64_t inner, bool norm_first,
          int activation, double eps, bool bf16, uintptr_t steps, uintptr_t step_rows, int64_t positions,
          uintptr_t ancestors, uintptr_t source, int64_t source_tokens, uintptr_t source_begin, int64_t sentences,
          uintptr_t sentence, uintptr_t x, int64_t rows, int threads) {
  if (layer_count < 0 || dim < 1 || heads < 1 || dim % heads != 0 || inner < 1 || positions < 1 || rows < 0 ||
      activation < 0 || activation > 1) {
    throw std::invalid_argument("sizes of the decoder do not fit together");
  }
  Decoder decoder{nullptr, layer_count, dim, heads, inner, norm_first, sentences > 0, static_cast<Activation>(activation),
                  eps, bf16};
  const auto* table = pointer<const int64_t>(layers, 8, layer_count * addresses_per_layer, "layers");
  std::vector<DecoderLayer> all;
  for (int64_t i = 0; i < layer_count; ++i) {
    all.push_back(layer_of(table + i * addresses_per_layer, decoder));
  }
  decoder.layers = all.data();
  const DecoderCache cache{positions,
                           pointer<float* const>(steps, 8, positions, "steps"),
                           pointer<const int64_t>(step_rows, 8, positions, "step_rows"),
                           pointer<const int32_t>(ancestors, 4, rows * positions, "ancestors"),
                           pointer<const float>(source, 4, source_tokens * layer_count * 2 * dim, "source"),
                           source_tokens,
                           pointer<const int64_t>(source_begin, 8, sentences, "source_begin"),
                           pointer<const int32_t>(sentence, 4, sentences > 0 ? rows : 0, "sentence")};
  check_cache(cache, rows);
  if (sentences > 0) {
    check_sources(cache, rows, sentences, source_tokens);
  }
  decoder_step(decoder, cache, pointer<float>(x, 4, rows * dim, "x"), rows, threads);
}

py::tuple next_beams(int64_t sentences, int64_t width, int64_t beam, int64_t count, int64_t candidates, int64_t eos,
                     bool first, uintptr_t lprobs, uintptr_t tokens, uintptr_t totals, uintptr_t sentence,
                     uintptr_t ended, int64_t batch, uintptr_t next_totals, uintptr_t next_tokens, uintptr_t next_rows,
                     uintptr_t going, uintptr_t place, uintptr_t ended_rows, uintptr_t ended_totals) {
  if (sentences < 0 || width < 1 || beam < 1 || count < 1 || candidates < beam || candidates > width * count) {
    throw std::invalid_argument("sizes must be positive, and the candidates from the beam to all that there are");
  }
  const int64_t rows = sentences * width, next = sentences * beam;
  const BeamStep step{sentences,
                      width,
                      beam,
                      count,
                      candidates,
                      eos,
                      first,
                      pointer<const float>(lprobs, 4, rows * count, "lprobs"),
                      pointer<const int64_t>(tokens, 8, rows * count, "tokens"),
                      totals == 0 ? nullptr : pointer<const float>(totals, 4, rows, "totals"),
                      pointer<const int64_t>(sentence, 8, sentences, "sentence"),
                      pointer<int64_t>(ended, 8, batch, "ended"),
                      pointer<float>(next_totals, 4, next, "next_totals"),
                      pointer<int64_t>(next_tokens, 8, next, "next_tokens"),
                      pointer<int64_t>(next_rows, 8, next, "next_rows"),
                      pointer<int64_t>(going, 8, sentences, "going"),
                      pointer<int64_t>(place, 8, next, "place"),
                      pointer<int64_t>(ended_rows, 8, next, "ended_rows"),
                      pointer<float>(ended_totals, 4, next, "ended_totals")};
  for (int64_t i = 0; i < sentences; ++i) {
    if (step.sentence[i] < 0 || step.sentence[i] >= batch) {
      throw std::out_of_range("a sentence is not one of the batch");
    }
  }
  const BeamCounts counts = beam_step(step);
  return py::make_tuple(counts.going, counts.ended);
}

}  // namespace

void bind_decoding(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.attr("panel_width") = panel_width;
  m.def("linear_top_candidates", &top_candidates, unlocked,
        "See csrc/cpu/linear_top_candidates.h; all fp32 and int64, weights perhaps bf16.",
        py::arg("x"), py::arg("rows"), py::arg("panels"), py::arg("bias"), py::arg("depth"), py::arg("columns"),
        py::arg("bf16"), py::arg("count"), py::arg("adjusted"), py::arg("adjustment"), py::arg("adjustments"),
        py::arg("filler"), py::arg("values"), py::arg("tokens"), py::arg("log_sum_exp"), py::arg("threads"));
  m.def("decoder_step", &step, unlocked,
        "See csrc/cpu/decoder_step.h; all fp32, weights perhaps bf16. `layers` is a table of addresses, `sentences` 0 "
        "without a source.",
        py::arg("layers"), py::arg("layer_count"), py::arg("dim"), py::arg("heads"), py::arg("inner"),
        py::arg("norm_first"), py::arg("activation"), py::arg("eps"), py::arg("bf16"), py::arg("steps"),
        py::arg("step_rows"), py::arg("positions"), py::arg("ancestors"), py::arg("source"), py::arg("source_tokens"),
        py::arg("source_begin"), py::arg("sentences"), py::arg("sentence"), py::arg("x"), py::arg("rows"),
        py::arg("threads"));
  m.def("beam_step", &next_beams,
        "See csrc/cpu/beam_step.h; fp32 and int64. Returns how many sentences go on and how many hypotheses have ended.",
        py::arg("sentences"), py::arg("width"), py::arg("beam"), py::arg("count"), py::arg("candidates"),
        py::arg("eos"), py::arg("first"), py::arg("lprobs"), py::arg("tokens"), py::arg("totals"),
        py::arg("sentence"), py::arg("ended"), py::arg("batch"), py::arg("next_totals"), py::arg("next_tokens"),
        py::arg("next_rows"), py::arg("going"), py::arg("place"), py::arg("ended_rows"), py::arg("ended_totals"));
}
