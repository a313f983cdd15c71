#include "data/token_blocks.h"

#include <algorithm>
#include <numeric>

namespace pyseq {
namespace {

int64_t fixed_blocks(int64_t total, int64_t block_size, Slice* slices) {
  int64_t count = 0;
  for (int64_t begin = 0; begin < total;) {
    const int64_t end = begin + std::min(block_size, total - begin);  // begin + block_size may wrap
    slices[count++] = {begin, end};
    begin = end;
  }
  return count;
}

// `separator` is the size of a sentence that ends a block and belongs to none; -1: there is none.
int64_t whole_sentences(const int64_t* sizes, int64_t n, int64_t block_size, int64_t separator, int64_t shortest,
                        Slice* slices) {
  int64_t count = 0;
  Slice block{0, 0};
  auto close = [&] {
    if (block.end - block.begin >= shortest) slices[count++] = block;
    block.begin = block.end;
  };
  for (int64_t i = 0; i < n; ++i) {
    const int64_t size = block.end - block.begin;
    if (sizes[i] == separator) {
      close();
      block.begin = block.end += sizes[i];
      continue;
    }
    if (size > 0 && sizes[i] > block_size - size) close();
    block.end += sizes[i];
  }
  close();
  return count;
}

int64_t sentences(const int64_t* sizes, int64_t n, Slice* slices) {
  int64_t begin = 0;
  for (int64_t i = 0; i < n; ++i) {
    slices[i] = {begin, begin + sizes[i]};
    begin += sizes[i];
  }
  return n;
}

// Walks forward to the sentence that holds a token.
class Cursor {
 public:
  Cursor(const int64_t* sizes, int64_t n) : sizes_(sizes), n_(n) {}

  void seek(int64_t token) {
    while (sentence_ + 1 < n_ && begin_ + sizes_[sentence_] <= token) begin_ += sizes_[sentence_++];
  }
  int64_t sentence() const { return sentence_; }
  int64_t begin() const { return begin_; }

 private:
  const int64_t* sizes_;
  int64_t n_;
  int64_t sentence_ = 0;
  int64_t begin_ = 0;
};

}  // namespace

int64_t block_capacity(const int64_t* sizes, int64_t n, BreakMode mode, int64_t block_size) {
  if (mode != BreakMode::kNone) return n;
  const int64_t total = std::accumulate(sizes, sizes + n, int64_t{0});
  return total / block_size + (total % block_size != 0);
}

int64_t slice_indices(const int64_t* sizes, int64_t n, BreakMode mode, int64_t block_size, int64_t document_sep_len,
                      Slice* slices) {
  switch (mode) {
    case BreakMode::kNone:
      return fixed_blocks(std::accumulate(sizes, sizes + n, int64_t{0}), block_size, slices);
    case BreakMode::kComplete:
      return whole_sentences(sizes, n, block_size, -1, 1, slices);
    case BreakMode::kCompleteDoc:
      return whole_sentences(sizes, n, block_size, document_sep_len, 2, slices);
    case BreakMode::kEos:
      return sentences(sizes, n, slices);
  }
  return 0;
}

void block_to_dataset_index(const int64_t* sizes, int64_t n, const Slice* slices, int64_t count,
                            BlockPosition* positions) {
  Cursor first(sizes, n), last(sizes, n);
  for (int64_t i = 0; i < count; ++i) {
    const Slice block = slices[i];
    first.seek(block.begin);
    last.seek(std::max(block.begin, block.end - 1));
    positions[i] = {first.sentence(), block.begin - first.begin(), last.sentence()};
  }
}

}  // namespace pyseq
