#include "data/words.h"

#include <algorithm>
#include <cstring>

namespace pyseq {
namespace {

uint64_t mix(uint64_t value) {
  value *= 0x9e3779b97f4a7c15u;
  return value ^ (value >> 32);
}

uint64_t hash_of(std::string_view word) {
  uint64_t hash = word.size();
  size_t i = 0;
  for (; i + 8 <= word.size(); i += 8) {
    uint64_t part;
    std::memcpy(&part, word.data() + i, 8);
    hash = mix(hash ^ part);
  }
  uint64_t rest = 0;
  if (i < word.size()) std::memcpy(&rest, word.data() + i, word.size() - i);
  return mix(mix(hash ^ rest));
}

// Whether whitespace may begin with a byte. Few do, and most of the time is spent on the others.
struct MayBegin {
  bool whitespace[256] = {};

  constexpr MayBegin() {
    for (const int byte : {0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0xc2, 0xe1, 0xe2, 0xe3})
      whitespace[byte] = true;
  }
};
constexpr MayBegin may_begin;

// Bytes of the whitespace at the beginning of `text`, 0 if there is none. `text` is not empty.
size_t whitespace(std::string_view text) {
  const auto at = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0; };
  const unsigned first = at(0), second = at(1), third = at(2);
  switch (first) {
    case 0xc2: return second == 0x85 || second == 0xa0 ? 2 : 0;
    case 0xe1: return second == 0x9a && third == 0x80 ? 3 : 0;
    case 0xe2:
      if (second == 0x80) return third <= 0x8a || third == 0xa8 || third == 0xa9 || third == 0xaf ? 3 : 0;
      return second == 0x81 && third == 0x9f ? 3 : 0;
    case 0xe3: return second == 0x80 && third == 0x80 ? 3 : 0;
  }
  return may_begin.whitespace[first];
}

// Calls word(text) for every word and line() at the end of every line.
template <class Word, class Line>
void read(std::string_view text, Word word, Line line) {
  size_t begin = 0, i = 0;  // of the word; of what is looked at
  const auto end_word = [&] {
    if (i > begin) word(text.substr(begin, i - begin));
  };
  bool open = false;  // whether a line has begun
  while (i < text.size()) {
    const size_t space = may_begin.whitespace[static_cast<unsigned char>(text[i])] ? whitespace(text.substr(i)) : 0;
    if (space == 0) {
      ++i;
      open = true;
      continue;
    }
    end_word();
    const bool ends_line = text[i] == '\n' || text[i] == '\r';
    const bool both = text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n';
    i += both ? 2 : space;
    begin = i;
    open = !ends_line;
    if (ends_line) line();
  }
  end_word();
  if (open) line();
}

}  // namespace

WordTable::WordTable() : slots_(1024, -1) {}

std::string_view WordTable::word(int64_t number) const {
  return {bytes_.data() + entries_[number].begin, static_cast<size_t>(entries_[number].size)};
}

size_t WordTable::slot_of(std::string_view wanted, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  while (slots_[slot] >= 0 && (entries_[slots_[slot]].hash != hash || word(slots_[slot]) != wanted))
    slot = (slot + 1) & mask;
  return slot;
}

int64_t WordTable::find(std::string_view word) const { return slots_[slot_of(word, hash_of(word))]; }

int64_t WordTable::add(std::string_view word) {
  const uint64_t hash = hash_of(word);
  size_t slot = slot_of(word, hash);
  if (slots_[slot] >= 0) return slots_[slot];
  if (2 * (entries_.size() + 1) > slots_.size()) {
    grow();
    slot = slot_of(word, hash);
  }
  slots_[slot] = size();
  entries_.push_back({hash, static_cast<int64_t>(bytes_.size()), static_cast<int64_t>(word.size())});
  bytes_.insert(bytes_.end(), word.begin(), word.end());
  return slots_[slot];
}

void WordTable::grow() {
  slots_.assign(2 * slots_.size(), -1);
  for (int64_t number = 0; number < size(); ++number) slots_[slot_of(word(number), entries_[number].hash)] = number;
}

void WordCounts::add(std::string_view word) {
  const int64_t number = words.add(word);
  if (number == static_cast<int64_t>(counts.size())) counts.push_back(0);
  ++counts[number];
}

WordCounts count_words(std::string_view text) {
  WordCounts found;
  read(text, [&](std::string_view word) { found.add(word); }, [&] { ++found.lines; });
  return found;
}

EncodedLines encode_lines(std::string_view text, const WordTable& vocabulary, const int32_t* ids,
                          const EncodeOptions& options) {
  EncodedLines out;
  out.tokens.reserve(text.size() / 4);
  size_t begin = 0;  // of the line, in tokens
  const auto word = [&](std::string_view word) {
    const int64_t number = vocabulary.find(word);
    if (number < 0) out.replaced.add(word);
    out.tokens.push_back(number < 0 ? options.unknown : ids[number]);
  };
  const auto line = [&] {
    if (options.reverse) std::reverse(out.tokens.begin() + begin, out.tokens.end());
    if (options.append_eos) out.tokens.push_back(options.eos);
    out.sizes.push_back(static_cast<int32_t>(out.tokens.size() - begin));
    begin = out.tokens.size();
  };
  read(text, word, line);
  return out;
}

}  // namespace pyseq
