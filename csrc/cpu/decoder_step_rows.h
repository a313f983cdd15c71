// Rows through the layers of a decoder, in vectors; included once for each instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/decode_attention_rows.h"
#include "cpu/decoder_step.h"
#include "cpu/layer_norm.h"
#include "cpu/packed_linear_rows.h"

namespace pyseq {
namespace PYSEQ_ISA {

static constexpr int64_t step_block_rows = 10 * 12;  // whole tiles of every instruction set but the last one

static inline int64_t padded(int64_t columns) { return (columns + panel_width - 1) / panel_width * panel_width; }

// What a thread needs beside its rows.
class DecoderBlock {
 public:
  DecoderBlock(const Decoder& decoder, const DecoderCache& cache, int64_t most_rows)
      : decoder_(decoder),
        cache_(cache),
        most_rows_(most_rows),
        dim_(decoder.dim),
        width_(padded(std::max(3 * decoder.dim, decoder.inner))),
        wide_(static_cast<size_t>(most_rows * width_)),
        narrow_(static_cast<size_t>(most_rows * padded(dim_))),
        attended_(static_cast<size_t>(most_rows * dim_)),
        normed_(static_cast<size_t>(most_rows * dim_)),
        statistics_(static_cast<size_t>(2 * most_rows)),
        work_(static_cast<size_t>(dim_)) {
    reserve(cache.positions);
  }

  void run(float* x, int64_t begin, int64_t end) {
    begin_ = begin;
    rows_ = end - begin;
    for (int64_t i = 0; i < decoder_.layer_count; ++i) {
      const DecoderLayer& layer = decoder_.layers[i];
      attend_to_prefix(layer, i, x);
      if (decoder_.attends_to_source) {
        attend_to_source(layer, i, x);
      }
      feed_forward(layer, x);
    }
  }

 private:
  void attend_to_prefix(const DecoderLayer& layer, int64_t number, float* x) {
    const float* input = begin_block(layer.self_norm, x);
    multiply(input, dim_, layer.qkv, wide_.data(), width_);
    const int64_t last = cache_.positions - 1;
    for (int64_t r = 0; r < rows_; ++r) {
      float* kept = cache_.steps[last] + (number * cache_.step_rows[last] + begin_ + r) * 2 * dim_;
      std::memcpy(kept, wide_.data() + r * width_ + dim_, static_cast<size_t>(2 * dim_) * sizeof(float));
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const int32_t* ancestors = cache_.ancestors + (begin_ + r) * cache_.positions;
      int64_t count = 0;
      for (int64_t t = 0; t <= last; ++t) {
        if (ancestors[t] >= 0) {
          keys_[static_cast<size_t>(count++)] =
              cache_.steps[t] + (number * cache_.step_rows[t] + ancestors[t]) * 2 * dim_;
        }
      }
      attend_over(count, wide_.data() + r * width_, r);
    }
    multiply(attended_.data(), dim_, layer.self_out, narrow_.data(), padded(dim_));
    end_block(layer.self_norm, x);
  }

  void attend_to_source(const DecoderLayer& layer, int64_t number, float* x) {
    const float* input = begin_block(layer.cross_norm, x);
    multiply(input, dim_, layer.cross_query, wide_.data(), width_);
    const float* source = cache_.source + number * cache_.source_tokens * 2 * dim_;
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t sentence = cache_.sentence[begin_ + r];
      const int64_t first = cache_.source_begin[sentence];
      const int64_t count = cache_.source_begin[sentence + 1] - first;
      reserve(count);
      for (int64_t i = 0; i < count; ++i) {
        keys_[static_cast<size_t>(i)] = source + (first + i) * 2 * dim_;
      }
      attend_over(count, wide_.data() + r * width_, r);
    }
    multiply(attended_.data(), dim_, layer.cross_out, narrow_.data(), padded(dim_));
    end_block(layer.cross_norm, x);
  }

  void feed_forward(const DecoderLayer& layer, float* x) {
    const float* input = begin_block(layer.final_norm, x);
    const bool relu = decoder_.activation == Activation::relu;
    multiply(input, dim_, layer.fc1, wide_.data(), width_, relu);
    for (int64_t r = 0; !relu && r < rows_; ++r) {
      gelu(wide_.data() + r * width_, decoder_.inner);
    }
    multiply(wide_.data(), width_, layer.fc2, narrow_.data(), padded(dim_));
    end_block(layer.final_norm, x);
  }

  // What a block's first product reads: the rows, or in pre-norm their norm.
  const float* begin_block(const Norm& norm, const float* x) {
    if (!decoder_.norm_first) {
      return x;
    }
    normalise(norm, x, normed_.data());
    return normed_.data();
  }

  // Adds what the block made to the rows, which post-norm normalises.
  void end_block(const Norm& norm, float* x) {
    for (int64_t r = 0; r < rows_; ++r) {
      add_scaled(narrow_.data() + r * padded(dim_), 1.0f, x + r * dim_, dim_);
    }
    if (!decoder_.norm_first) {
      normalise(norm, x, x);
    }
  }

  void normalise(const Norm& norm, const float* x, float* y) {
    const LayerNormRows shape{DType::f32, rows_, dim_, norm.weight, norm.bias, dropout_of(0.0, 0)};
    float* mean = statistics_.data();
    layer_norm_kernels(DType::f32)
        .forward(shape, {x, nullptr, decoder_.eps, y, nullptr, mean, mean + most_rows_}, 0, rows_, work_.data());
  }

  void multiply(const float* x, int64_t stride, const PackedLinear& weights, float* y, int64_t y_stride,
                bool relu = false) {
    const Operand operand = operands_.of(x, stride, rows_, weights.depth);
    multiply_panels(operand, rows_, weights, 0, weights.panel_count(), y, y_stride, relu);
  }

  void attend_over(int64_t count, const float* query, int64_t row) {
    const int64_t head_dim = dim_ / decoder_.heads;
    const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    attend(query, decoder_.heads, head_dim, scale, keys_.data(), count, scores_.data(), attended_.data() + row * dim_);
  }

  void reserve(int64_t keys) {
    if (static_cast<int64_t>(keys_.size()) < keys) {
      keys_.resize(static_cast<size_t>(keys));
      scores_.resize(static_cast<size_t>(keys * decoder_.heads));
    }
  }

  static void gelu(float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
    }
  }

  const Decoder& decoder_;
  const DecoderCache& cache_;
  const int64_t most_rows_, dim_, width_;
  std::vector<float> wide_, narrow_, attended_, normed_, statistics_, work_, scores_;
  std::vector<const float*> keys_;
  Operands operands_;
  int64_t begin_ = 0, rows_ = 0;
};

static void run_rows(const Decoder& decoder, const DecoderCache& cache, float* x, int64_t begin, int64_t end) {
  DecoderBlock block(decoder, cache, std::min(step_block_rows, end - begin));
  for (int64_t row = begin; row < end; row += step_block_rows) {
    block.run(x + row * decoder.dim, row, std::min(end, row + step_block_rows));
  }
}

DecoderRows decoder_rows() { return &run_rows; }

}  // namespace PYSEQ_ISA
}  // namespace pyseq
