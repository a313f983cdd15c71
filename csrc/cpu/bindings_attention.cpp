// The bindings of attention: checks at the border, nothing else.
#include <pybind11/pybind11.h>

#include <tuple>

#include "cpu/attention.h"
#include "cpu/bindings.h"

namespace py = pybind11;
using namespace pyseq;

namespace {

using Address = std::tuple<uintptr_t, int64_t, int64_t>;        // and the strides of tokens and heads
using Offsets = std::tuple<uintptr_t, uintptr_t>;               // of queries and keys
using Options = std::tuple<int64_t, bool, float, double, uintptr_t>;  // longest key, causal, scale, p, seed

// Raises unless [tokens, heads, dim] can be there.
template <class Data>
Heads<Data> heads(const AttentionShape& shape, const int32_t* offsets, const Address& address, const char* name) {
  const auto [begin, token_stride, head_stride] = address;
  const int64_t count = offsets[shape.segments] * shape.heads * shape.dim;
  return {pointer<Data>(begin, size_of(shape.dtype), count, name), token_stride, head_stride};
}

AttentionShape shape_of(int dtype, int64_t segments, int64_t head_count, int64_t dim, const Offsets& offsets,
                        const Options& options) {
  const auto [longest_key, causal, scale, p, seed] = options;
  if (!(p >= 0.0 && p <= 1.0) || segments < 0 || head_count < 1 || dim < 1) {
    throw std::invalid_argument("p must be in [0, 1], and sizes not negative");
  }
  const auto [queries, keys] = offsets;
  const int64_t number = seed == 0 ? 0 : *pointer<const int64_t>(seed, 8, 1, "seed");
  return {checked_dtype(dtype),
          segments,
          head_count,
          dim,
          pointer<const int32_t>(queries, 4, segments + 1, "query_offsets"),
          pointer<const int32_t>(keys, 4, segments + 1, "key_offsets"),
          longest_key,
          causal,
          scale,
          dropout_of(p, number)};
}

void forward(int dtype, int64_t segments, int64_t head_count, int64_t dim, const Offsets& offsets, const Options& options,
             const Address& query, const Address& key, const Address& value, const Address& out, uintptr_t log_sums,
             int threads) {
  const auto shape = shape_of(dtype, segments, head_count, dim, offsets, options);
  const int32_t *queries = shape.query_offsets, *keys = shape.key_offsets;
  attention_forward(
      shape,
      {heads<const void>(shape, queries, query, "query"), heads<const void>(shape, keys, key, "key"),
       heads<const void>(shape, keys, value, "value"), heads<void>(shape, queries, out, "out"),
       pointer<float>(log_sums, 4, queries[segments] * head_count, "log_sums")},
      threads);
}

void backward(int dtype, int64_t segments, int64_t head_count, int64_t dim, const Offsets& offsets,
              const Options& options, const Address& query, const Address& key, const Address& value, const Address& out,
              const Address& grad_out, uintptr_t log_sums, const Address& grad_query, const Address& grad_key,
              const Address& grad_value, int threads) {
  const auto shape = shape_of(dtype, segments, head_count, dim, offsets, options);
  const int32_t *queries = shape.query_offsets, *keys = shape.key_offsets;
  attention_backward(
      shape,
      {heads<const void>(shape, queries, query, "query"), heads<const void>(shape, keys, key, "key"),
       heads<const void>(shape, keys, value, "value"), heads<const void>(shape, queries, out, "out"),
       heads<const void>(shape, queries, grad_out, "grad_out"),
       pointer<const float>(log_sums, 4, queries[segments] * head_count, "log_sums"),
       heads<void>(shape, queries, grad_query, "grad_query"), heads<void>(shape, keys, grad_key, "grad_key"),
       heads<void>(shape, keys, grad_value, "grad_value")},
      threads);
}

}  // namespace

void bind_attention(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("attention_forward", &forward, unlocked,
        "out and log_sums of csrc/cpu/attention.h. Tensors are (address, stride of tokens, stride of heads); options are "
        "(longest key, causal, scale, p, address of an int64 seed or 0).",
        py::arg("dtype"), py::arg("segments"), py::arg("heads"), py::arg("dim"), py::arg("offsets"), py::arg("options"),
        py::arg("query"), py::arg("key"), py::arg("value"), py::arg("out"), py::arg("log_sums"), py::arg("threads"));
  m.def("attention_backward", &backward, unlocked, "The gradients of query, key and value.", py::arg("dtype"),
        py::arg("segments"), py::arg("heads"), py::arg("dim"), py::arg("offsets"), py::arg("options"), py::arg("query"),
        py::arg("key"), py::arg("value"), py::arg("out"), py::arg("grad_out"), py::arg("log_sums"),
        py::arg("grad_query"), py::arg("grad_key"), py::arg("grad_value"), py::arg("threads"));
}
