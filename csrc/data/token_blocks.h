// A stream of sentences cut into the blocks that a language model reads. Positions count tokens of the whole stream.
#pragma once

#include <cstdint>

namespace pyseq {

enum class BreakMode {
  kNone,  // blocks of block_size tokens, wherever a sentence ends
  kComplete,  // whole sentences up to block_size tokens; a longer sentence is a block of its own
  kCompleteDoc,  // the same, and a block ends at a document separator, which belongs to no block; blocks of at most
                 // one token are dropped
  kEos,  // one sentence a block
};

struct Slice {  // tokens [begin, end) of the stream
  int64_t begin;
  int64_t end;
};

struct BlockPosition {
  int64_t first;   // sentence that holds the first token of the block
  int64_t offset;  // of that token in it
  int64_t last;    // sentence that holds the last token of the block
};

// An upper bound of the number of blocks.
int64_t block_capacity(const int64_t* sizes, int64_t n, BreakMode mode, int64_t block_size);

// Writes the blocks of sentences of `sizes[n]` tokens to `slices` (room for block_capacity) and returns their number.
// A separator is a sentence of exactly `document_sep_len` tokens. `block_size` is at least 1, except for kEos, which
// ignores it.
int64_t slice_indices(const int64_t* sizes, int64_t n, BreakMode mode, int64_t block_size, int64_t document_sep_len,
                      Slice* slices);

// Finds the sentences of each of `slices[count]`, whose begins and ends must not decrease and lie within the stream.
// A block without tokens is put at the sentence that follows it, or at the last one. O(n + count).
void block_to_dataset_index(const int64_t* sizes, int64_t n, const Slice* slices, int64_t count,
                            BlockPosition* positions);

}  // namespace pyseq
