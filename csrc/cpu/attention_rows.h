// Attention of one head of one segment in vectors; included once for each instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/attention.h"
#include "cpu/attention_product.h"
#include "cpu/random_vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

static constexpr float infinity = std::numeric_limits<float>::infinity();
static_assert(attention_keys % attention_queries == 0, "so a query sees the first key of every block that it sees");

// Hands out scratch memory.
class Work {
 public:
  explicit Work(float* begin) : next_(begin) {}

  Matrix matrix(int64_t rows, int64_t cols) {
    const Matrix result{next_, attention_stride(cols)};
    next_ += rows * result.stride;
    return result;
  }

 private:
  float* next_;
};

// The tokens of a segment, for one head.
template <class T>
struct Rows {
  T* data;
  int64_t stride, next_head;
  T* row(int64_t i) const { return data + i * stride; }
  Rows from(int64_t i) const { return {row(i), stride, next_head}; }

  // What is read here of the head that most likely comes next, on its way to the cache.
  void prefetch_next(int64_t i, int64_t dim) const {
    const char* const begin = reinterpret_cast<const char*>(row(i) + next_head);
    for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(T)); byte += 64) {
      __builtin_prefetch(begin + byte);
    }
  }
};

template <class T>
static Rows<const T> rows_of(const Heads<const void>& heads, int64_t token, int64_t head) {
  const T* data = static_cast<const T*>(heads.data) + token * heads.token_stride + head * heads.head_stride;
  return {data, heads.token_stride, heads.head_stride};
}
template <class T>
static Rows<T> rows_of(const Heads<void>& heads, int64_t token, int64_t head) {
  T* data = static_cast<T*>(heads.data) + token * heads.token_stride + head * heads.head_stride;
  return {data, heads.token_stride, heads.head_stride};
}

template <class T>
static inline Vec load_some(const T* p, int64_t count) {
  return count >= Vec::width ? load(p) : load(p, static_cast<int>(count), 0.0f);
}

// Rows to scratch memory as fp32, with zeros up to a whole vector.
template <class T>
static void copy_rows(Rows<const T> from, int64_t count, int64_t dim, Matrix to) {
  for (int64_t i = 0; i < count; ++i) {
    from.prefetch_next(i, dim);
    for (int64_t d = 0; d < dim; d += Vec::width) {
      store(to.row(i) + d, load_some(from.row(i) + d, dim - d));
    }
  }
}

// The same, transposed: `to` is [dim, count], with zeros up to a whole vector.
template <class T>
static void copy_transposed(Rows<const T> from, int64_t count, int64_t dim, Matrix to) {
  for (int64_t i = 0; i < count; i += Vec::width) {
    for (int64_t k = i; k < std::min<int64_t>(count, i + Vec::width); ++k) {
      from.prefetch_next(k, dim);
    }
    for (int64_t d = 0; d < dim; d += Vec::width) {
      Vec square[Vec::width];
      for (int64_t k = 0; k < Vec::width; ++k) {
        square[k] = i + k < count ? load_some(from.row(i + k) + d, dim - d) : Vec(0.0f);
      }
      transpose(square);
      for (int64_t k = 0; k < Vec::width && d + k < dim; ++k) {
        store(to.row(d + k) + i, square[k]);
      }
    }
  }
}

template <class T>
static inline void store_row(const float* from, float factor, int64_t dim, T* to) {
  for (int64_t d = 0; d < dim; d += Vec::width) {
    const Vec scaled = load(from + d) * Vec(factor);
    if (dim - d >= Vec::width) {
      store(to + d, scaled);
    } else {
      store(to + d, scaled, static_cast<int>(dim - d));
    }
  }
}

template <class T>
static void zero_rows(Rows<T> rows, int64_t count, int64_t dim) {
  for (int64_t i = 0; i < count; ++i) {
    std::memset(static_cast<void*>(rows.row(i)), 0, static_cast<size_t>(dim) * sizeof(T));
  }
}

// A block of scores: queries `query` on and keys `key` on, counted in their segment.
struct Block {
  int64_t query, queries;
  int64_t key, keys;
  bool diagonal;  // causal, and some query of the block does not see all of its keys

  // Keys of the block that its query i sees: at least one.
  int64_t seen_by(int64_t i) const { return diagonal ? std::min(keys, query + i + 1 - key) : keys; }

  // The first query of the block that sees its key j.
  int64_t first_to_see(int64_t j) const { return diagonal ? std::max<int64_t>(0, key + j - query) : 0; }
};

// use(block) for the blocks of keys that some queries see.
template <class Use>
static inline void for_key_blocks(bool causal, int64_t query, int64_t queries, int64_t keys, const Use& use) {
  const int64_t seen = causal ? std::min(keys, query + queries) : keys;
  for (int64_t key = 0; key < seen; key += attention_keys) {
    const int64_t here = std::min(attention_keys, seen - key);
    use(Block{query, queries, key, here, causal && key + here > query + 1});
  }
}

// c (+)= a b where a or c is a block of scores: what no query sees is left out.
template <bool add>
static void scores_product(const Block& block, Matrix queries, Matrix keys, Matrix scores, int64_t dim) {
  if (!block.diagonal) {
    product<false, add>(queries, keys, scores, block.queries, block.keys, dim);
    return;
  }
  for (int64_t i = 0; i < block.queries; i += tile_rows) {
    const int64_t rows = std::min<int64_t>(tile_rows, block.queries - i);
    product<false, add>(queries.from(i), keys, scores.from(i), rows, block.seen_by(i + rows - 1), dim);
  }
}

template <bool add>
static void times_keys(const Block& block, Matrix scores, Matrix keys, Matrix out, int64_t dim) {
  if (!block.diagonal) {
    product<false, add>(scores, keys, out, block.queries, dim, block.keys);
    return;
  }
  for (int64_t i = 0; i < block.queries; i += tile_rows) {
    const int64_t rows = std::min<int64_t>(tile_rows, block.queries - i);
    product<false, add>(scores.from(i), keys, out.from(i), rows, dim, block.seen_by(i + rows - 1));
  }
}

static void add_transposed_times_queries(const Block& block, Matrix scores, Matrix queries, Matrix out, int64_t dim) {
  if (!block.diagonal) {
    product<true, true>(scores, queries, out, block.keys, dim, block.queries);
    return;
  }
  for (int64_t j = 0; j < block.keys; j += tile_rows) {
    const int64_t rows = std::min<int64_t>(tile_rows, block.keys - j), first = block.first_to_see(j);
    product<true, true>(scores.from(first, j), queries.from(first), out.from(j), rows, dim, block.queries - first);
  }
}

// Products of tiles read a few scores beyond those that query i of a block sees, and sums what fills a vector: they count
// nothing.
static inline void hide_unseen(const Block& block, int64_t i, float* scores) {
  const int64_t seen = block.seen_by(i), whole = (seen + Vec::width - 1) / Vec::width * Vec::width;
  std::fill(scores + seen, scores + std::max(whole, std::min(block.keys, seen + 2 * tile_rows)), 0.0f);
}

// Which weights of 8 queries dropout keeps.
class Keep {
 public:
  static constexpr int64_t queries = 8;

  Keep(const AttentionShape& shape, int64_t segment, int64_t head)
      : shape_(shape), first_token_(shape.query_offsets[segment]), head_(head), drops_(shape.dropout.limit >= 0) {}

  // Draws for the queries of a block from number i on, a multiple of 8.
  void draw(const Block& block, int64_t i) {
    if (!drops_) {
      return;
    }
    const int64_t seen = block.seen_by(std::min(i + queries, block.queries) - 1);
    const uint64_t tile = attention_tile(shape_, first_token_, block.query + i, head_, block.key);
    for (int64_t t = 0; t * 16 < seen; ++t) {
      const RandomTile words = random_tile(shape_.dropout.stream, tile + static_cast<uint64_t>(t));
      for (int v = 0; v < RandomTile::vectors; ++v) {
        store_bits(halves_ + t * 128 + v * 2 * Vec::width, words.bits[v]);
      }
    }
  }

  // What is dropped of the weights from key j on of query i, as draw counts them, is 0.
  Vec operator()(Vec weights, int64_t i, int64_t j) const {
    return drops_ ? keep_above(weights, halves_ + j / 16 * 128 + i % queries * 16 + j % 16, shape_.dropout.limit)
                  : weights;
  }

  float scale() const { return drops_ ? shape_.dropout.scale : 1.0f; }

 private:
  const AttentionShape& shape_;
  int64_t first_token_, head_;
  bool drops_;
  alignas(64) uint16_t halves_[attention_keys / 16 * 128];
};

// The running maximum of scaled scores, and sum of exp of their distances to it, of the queries of a block.
struct Running {
  float largest[attention_queries];
  float sum[attention_queries];
};

// Scores of query i become exp(scaled score - largest), what is dropped 0. `out` is the sum over earlier blocks of keys.
static void softmax_row(const AttentionShape& shape, const Block& block, const Keep& keep, int64_t i, float* scores,
                        Running* running, float* out) {
  const int64_t seen = block.seen_by(i), whole = seen / Vec::width * Vec::width;
  const Vec scale(shape.scale);
  Vec most(-infinity);
  for (int64_t j = 0; j < seen; j += Vec::width) {
    const Vec scaled = load(scores + j) * scale;
    store(scores + j, scaled);
    if (j < whole) {
      most = max(scaled, most);
    }
  }
  if (whole < seen) {
    std::fill(scores + seen, scores + whole + Vec::width, -infinity);
    most = max(load(scores + whole), most);
  }
  const float before = running->largest[i], largest = std::max(before, reduce_max(most));
  Vec sums(0.0f);
  for (int64_t j = 0; j < seen; j += Vec::width) {
    const Vec weight = exp_nonpositive(load(scores + j) - Vec(largest));
    sums = sums + weight;
    store(scores + j, keep(weight, i, j));
  }
  hide_unseen(block, i, scores);
  float sum = reduce_add(sums);
  if (block.key > 0) {
    const float factor = std::exp(before - largest);
    store_row(out, factor, shape.dim, out);
    sum += running->sum[i] * factor;
  }
  running->largest[i] = largest;
  running->sum[i] = sum;
}

template <class T>
static void forward_queries(const AttentionShape& shape, Rows<const T> query, Matrix keys_t, Matrix values, int64_t first,
                            int64_t count, int64_t keys, Keep* keep, Work work, Running* running, Matrix out) {
  const Matrix queries = work.matrix(count, shape.dim);
  const Matrix scores = work.matrix(count, std::min(keys, attention_keys));
  copy_rows(query, count, shape.dim, queries);
  std::fill(running->largest, running->largest + count, -infinity);
  for_key_blocks(shape.causal, first, count, keys, [&](const Block& block) {
    scores_product<false>(block, queries, keys_t.from(block.key / attention_keys * shape.dim), scores, shape.dim);
    for (int64_t i = 0; i < count; ++i) {
      if (i % Keep::queries == 0) {
        keep->draw(block, i);
      }
      softmax_row(shape, block, *keep, i, scores.row(i), running, out.row(i));
    }
    if (block.key == 0) {
      times_keys<false>(block, scores, values, out, shape.dim);
    } else {
      times_keys<true>(block, scores, values.from(block.key), out, shape.dim);
    }
  });
}

// [blocks of keys, dim, keys of a block]
template <class T>
static Matrix transposed_blocks(Rows<const T> rows, int64_t count, int64_t dim, Work* work) {
  const int64_t blocks = (count + attention_keys - 1) / attention_keys;
  const Matrix result = work->matrix(blocks * dim, std::min(count, attention_keys));
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * attention_keys;
    copy_transposed(rows.from(first), std::min(attention_keys, count - first), dim,
                    result.from(b * dim));
  }
  return result;
}

template <class T>
static void forward(const AttentionShape& shape, const AttentionForward& data, int64_t segment, int64_t head,
                    float* memory) {
  const int64_t query_token = shape.query_offsets[segment], key_token = shape.key_offsets[segment];
  const int64_t queries = shape.query_offsets[segment + 1] - query_token;
  const int64_t keys = shape.key_offsets[segment + 1] - key_token;
  const Rows<const T> query = rows_of<T>(data.query, query_token, head), value = rows_of<T>(data.value, key_token, head);
  const Rows<T> out = rows_of<T>(data.out, query_token, head);
  float* log_sums = data.log_sums + query_token * shape.heads + head;
  if (keys == 0) {
    zero_rows(out, queries, shape.dim);
    for (int64_t i = 0; i < queries; ++i) {
      log_sums[i * shape.heads] = -infinity;
    }
    return;
  }
  Work work(memory);
  Keep keep(shape, segment, head);
  const Matrix keys_t = transposed_blocks(rows_of<T>(data.key, key_token, head), keys, shape.dim, &work);
  const Matrix values = work.matrix(keys, shape.dim);
  copy_rows(value, keys, shape.dim, values);
  const Matrix sums = work.matrix(std::min(queries, attention_queries), shape.dim);
  Running running;
  for (int64_t first = 0; first < queries; first += attention_queries) {
    const int64_t count = std::min(attention_queries, queries - first);
    forward_queries(shape, query.from(first), keys_t, values, first, count, keys, &keep, work,
                    &running, sums);
    for (int64_t i = 0; i < count; ++i) {
      store_row(sums.row(i), keep.scale() / running.sum[i], shape.dim, out.row(first + i));
      log_sums[(first + i) * shape.heads] = running.largest[i] + std::log(running.sum[i]);
    }
  }
}

// Scores of query i become its weights after dropout, and the gradients of the weights those of the scores. delta is the
// sum of all weights times their gradients; null where the block has all of them.
static void gradient_row(const AttentionShape& shape, const Block& block, const Keep& keep, int64_t i, float log_sum,
                         const float* delta, float* scores, float* grads) {
  const int64_t seen = block.seen_by(i), whole = seen / Vec::width * Vec::width;
  const Vec scale(shape.scale), kept_scale(keep.scale());
  Vec products(0.0f);
  for (int64_t j = 0; j < seen; j += Vec::width) {
    const Vec weight = exp_nonpositive(load(scores + j) * scale - Vec(log_sum));
    const Vec grad = keep(load(grads + j) * kept_scale, i, j);
    store(scores + j, weight);
    store(grads + j, grad);
    if (j < whole) {
      products = fma(weight, grad, products);
    }
  }
  hide_unseen(block, i, scores);
  hide_unseen(block, i, grads);
  if (whole < seen) {
    products = fma(load(scores + whole), load(grads + whole), products);
  }
  const Vec center(delta ? *delta : reduce_add(products));
  for (int64_t j = 0; j < seen; j += Vec::width) {
    const Vec weight = load(scores + j);
    store(scores + j, keep(weight * kept_scale, i, j));
    store(grads + j, weight * (load(grads + j) - center) * scale);
  }
}

template <class T>
static float dot(const float* a, const T* b, int64_t dim) {
  Vec sum(0.0f);
  for (int64_t d = 0; d < dim; d += Vec::width) {
    sum = fma(load(a + d), load_some(b + d, dim - d), sum);
  }
  return reduce_add(sum);
}

// What the backward pass keeps of the keys and values of a segment.
struct KeySide {
  Matrix keys, keys_t, values_t, grad_keys, grad_values;
};

template <class T>
static void backward_queries(const AttentionShape& shape, Rows<const T> query, Rows<const T> out, Rows<const T> grad_out,
                             const float* log_sums, const KeySide& side, int64_t first, int64_t count, int64_t keys,
                             Keep* keep, Work work, Rows<T> grad_query) {
  const Matrix queries = work.matrix(count, shape.dim), grads_out = work.matrix(count, shape.dim);
  const Matrix grads_query = work.matrix(count, shape.dim);
  const Matrix weights = work.matrix(count, std::min(keys, attention_keys));
  const Matrix grads = work.matrix(count, std::min(keys, attention_keys));
  copy_rows(query, count, shape.dim, queries);
  copy_rows(grad_out, count, shape.dim, grads_out);
  const bool one_block = keys <= attention_keys;
  float delta[attention_queries];
  for (int64_t i = 0; i < count && !one_block; ++i) {
    delta[i] = dot(grads_out.row(i), out.row(i), shape.dim);
  }
  for_key_blocks(shape.causal, first, count, keys, [&](const Block& block) {
    const int64_t transposed = block.key / attention_keys * shape.dim;
    scores_product<false>(block, queries, side.keys_t.from(transposed), weights, shape.dim);
    scores_product<false>(block, grads_out, side.values_t.from(transposed), grads, shape.dim);
    for (int64_t i = 0; i < count; ++i) {
      if (i % Keep::queries == 0) {
        keep->draw(block, i);
      }
      gradient_row(shape, block, *keep, i, log_sums[i * shape.heads], one_block ? nullptr : delta + i, weights.row(i),
                   grads.row(i));
    }
    add_transposed_times_queries(block, weights, grads_out, side.grad_values.from(block.key), shape.dim);
    add_transposed_times_queries(block, grads, queries, side.grad_keys.from(block.key), shape.dim);
    if (block.key == 0) {
      times_keys<false>(block, grads, side.keys, grads_query, shape.dim);
    } else {
      times_keys<true>(block, grads, side.keys.from(block.key), grads_query, shape.dim);
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    store_row(grads_query.row(i), 1.0f, shape.dim, grad_query.row(i));
  }
}

template <class T>
static void backward(const AttentionShape& shape, const AttentionBackward& data, int64_t segment, int64_t head,
                     float* memory) {
  const int64_t query_token = shape.query_offsets[segment], key_token = shape.key_offsets[segment];
  const int64_t queries = shape.query_offsets[segment + 1] - query_token;
  const int64_t keys = shape.key_offsets[segment + 1] - key_token, dim = shape.dim;
  const Rows<const T> query = rows_of<T>(data.query, query_token, head), out = rows_of<T>(data.out, query_token, head);
  const Rows<const T> key = rows_of<T>(data.key, key_token, head), value = rows_of<T>(data.value, key_token, head);
  const Rows<const T> grad_out = rows_of<T>(data.grad_out, query_token, head);
  const Rows<T> grad_query = rows_of<T>(data.grad_query, query_token, head);
  const Rows<T> grad_key = rows_of<T>(data.grad_key, key_token, head);
  const Rows<T> grad_value = rows_of<T>(data.grad_value, key_token, head);
  if (keys == 0 || queries == 0) {
    zero_rows(grad_query, queries, dim);
    zero_rows(grad_key, keys, dim);
    zero_rows(grad_value, keys, dim);
    return;
  }
  Work work(memory);
  Keep keep(shape, segment, head);
  const KeySide side{work.matrix(keys, dim), transposed_blocks(key, keys, dim, &work),
                     transposed_blocks(value, keys, dim, &work), work.matrix(keys, dim), work.matrix(keys, dim)};
  copy_rows(key, keys, dim, side.keys);
  for (const Matrix grads : {side.grad_keys, side.grad_values}) {
    std::fill(grads.data, grads.data + keys * grads.stride, 0.0f);
  }
  for (int64_t first = 0; first < queries; first += attention_queries) {
    backward_queries(shape, query.from(first), out.from(first), grad_out.from(first),
                     data.log_sums + (query_token + first) * shape.heads + head, side, first,
                     std::min(attention_queries, queries - first), keys, &keep, work, grad_query.from(first));
  }
  for (int64_t j = 0; j < keys; ++j) {
    store_row(side.grad_keys.row(j), 1.0f, dim, grad_key.row(j));
    store_row(side.grad_values.row(j), 1.0f, dim, grad_value.row(j));
  }
}

AttentionKernels attention_kernels(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return {forward<float>, backward<float>};
    case DType::bf16:
      return {forward<bf16>, backward<bf16>};
    default:
      return {forward<f16>, backward<f16>};
  }
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
