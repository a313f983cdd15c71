// One step of a transformer decoder: the newest position of every hypothesis through all layers (Vaswani et al. 2017).
//
// Hypotheses are rows. Nothing of one depends on another but the keys and values of its ancestors, so each thread takes
// some rows through all layers, a block that stays in its cache at a time.
#pragma once

#include <cstdint>

#include "cpu/packed_linear.h"

namespace pyseq {

struct Norm {
  const float* weight;  // [dim], or null for 1
  const float* bias;    // [dim], or null for 0
};

struct DecoderLayer {
  Norm self_norm;
  PackedLinear qkv;       // query, key, value: dim to 3 dim
  PackedLinear self_out;  // dim to dim
  Norm cross_norm;
  PackedLinear cross_query;  // dim to dim
  PackedLinear cross_out;    // dim to dim
  Norm final_norm;
  PackedLinear fc1;  // dim to inner
  PackedLinear fc2;  // inner to dim
};

enum class Activation : int { relu = 0, gelu = 1 };  // the numbers are those of pyseq/ops/decoder_step.py

struct Decoder {
  const DecoderLayer* layers;
  int64_t layer_count;
  int64_t dim;
  int64_t heads;
  int64_t inner;
  bool norm_first;  // pre-norm
  bool attends_to_source;
  Activation activation;
  double eps;  // of all norms
  bool bf16;   // of the weights of all products
};

// Keys and values: each key [dim] is followed by its value [dim].
struct DecoderCache {
  int64_t positions;            // with the one of this step, which is the last
  float* const* steps;          // [positions]: of each [layers, rows of that step, 2 dim]
  const int64_t* step_rows;     // [positions]
  const int32_t* ancestors;     // [rows, positions]: the row of each step that a hypothesis descends from, or -1 where it
                                // has padding, which is not attended to
  const float* source;          // [layers, source tokens, 2 dim], or null
  int64_t source_tokens;
  const int64_t* source_begin;  // [sentences + 1]
  const int32_t* sentence;      // [rows]
};

// x [rows, dim] becomes what the last layer returns; the keys and values of these rows are written to the last step.
// `threads` changes no bit of the results.
void decoder_step(const Decoder& decoder, const DecoderCache& cache, float* x, int64_t rows, int threads);

// What an instruction set does with rows [begin, end).
using DecoderRows = void (*)(const Decoder& decoder, const DecoderCache& cache, float* x, int64_t begin, int64_t end);

namespace portable {
DecoderRows decoder_rows();
}
namespace avx2 {
DecoderRows decoder_rows();
}
namespace avx512 {
DecoderRows decoder_rows();
}
namespace avx512bf16 {
DecoderRows decoder_rows();
}

}  // namespace pyseq
