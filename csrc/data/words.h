// The words of UTF-8 text, which stand between runs of what Unicode calls whitespace.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace pyseq {

// Words, numbered as they are added. Owns their bytes.
class WordTable {
 public:
  WordTable();
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  std::string_view word(int64_t number) const;
  int64_t find(std::string_view word) const;  // -1 if it is not there
  int64_t add(std::string_view word);         // the number that it has or gets

 private:
  struct Entry {
    uint64_t hash;
    int64_t begin, size;  // in bytes_
  };
  // Where `word` is or would be: an index of slots_, whose values are entries, -1 where free.
  size_t slot_of(std::string_view word, uint64_t hash) const;
  void grow();

  std::vector<char> bytes_;
  std::vector<Entry> entries_;
  std::vector<int64_t> slots_;  // a power of two of them, at most half of them taken
};

struct WordCounts {
  WordTable words;
  std::vector<int64_t> counts;  // by number
  int64_t lines = 0;

  void add(std::string_view word);
};

// A line ends at "\n", "\r\n" or "\r"; what follows the last end is a line, too, unless it is empty.
WordCounts count_words(std::string_view text);

struct EncodeOptions {
  int32_t unknown;  // id of words that are not in the vocabulary
  bool append_eos;
  int32_t eos;
  bool reverse;  // last word first, eos still at the end
};

struct EncodedLines {
  std::vector<int32_t> tokens, sizes;  // tokens of all lines, and how many belong to each
  WordCounts replaced;                 // the words that are not in the vocabulary
};

// ids[n]: the id of word n of the vocabulary.
EncodedLines encode_lines(std::string_view text, const WordTable& vocabulary, const int32_t* ids,
                          const EncodeOptions& options);

}  // namespace pyseq
