#include <cstdint>
#include <string>
#include <vector>

#include "data/words.h"
#include "tests/check.h"

TEST(words_are_counted_with_the_lines) {
  const auto found = pyseq::count_words("a b\r\na\xe3\x80\x80\xc3\xa9\r\r b");
  CHECK(found.lines == 4 && found.words.size() == 3);
  CHECK(found.words.word(0) == "a" && found.words.word(1) == "b" && found.words.word(2) == "\xc3\xa9");
  CHECK(found.counts == (std::vector<int64_t>{2, 2, 1}));
  CHECK(pyseq::count_words("").lines == 0 && pyseq::count_words("\n").lines == 1 && pyseq::count_words(" ").lines == 1);
}

TEST(words_at_the_end_of_the_text_are_not_read_past) {
  for (const std::string text : {"\xc2", "\xe2", "\xe2\x80", "\xe3\x80", "\xe1\x9a", "\r"})
    CHECK(pyseq::count_words(text).lines == 1);
}

TEST(words_become_ids) {
  pyseq::WordTable vocabulary;
  for (int i = 0; i < 3000; ++i) CHECK(vocabulary.add("word" + std::to_string(i)) == i);
  CHECK(vocabulary.add("word7") == 7 && vocabulary.find("word2999") == 2999 && vocabulary.find("word") == -1);
  std::vector<int32_t> ids(3000);
  for (int i = 0; i < 3000; ++i) ids[i] = 10 + i;
  const auto forward = pyseq::encode_lines("word1 what word0\n\nword2", vocabulary, ids.data(), {3, true, 2, false});
  CHECK(forward.tokens == (std::vector<int32_t>{11, 3, 10, 2, 2, 12, 2}));
  CHECK(forward.sizes == (std::vector<int32_t>{4, 1, 2}));
  CHECK(forward.replaced.words.size() == 1 && forward.replaced.words.word(0) == "what");
  const auto back = pyseq::encode_lines("word1 word0\nword2", vocabulary, ids.data(), {3, false, 2, true});
  CHECK(back.tokens == (std::vector<int32_t>{10, 11, 12}) && back.sizes == (std::vector<int32_t>{2, 1}));
}
