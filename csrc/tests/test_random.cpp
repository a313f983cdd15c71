#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/random.h"
#include "tests/check.h"

using namespace pyseq;

namespace {

struct KnownAnswer {
  uint32_t counter[4], key[2], result[4];
};

// From the known-answer tests that the authors of Philox publish with Random123.
constexpr KnownAnswer ten_rounds[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

void check_words(RandomStream stream, uint64_t begin, int64_t count) {
  std::vector<uint32_t> words(static_cast<size_t>(count));
  random_words(stream, begin, count, words.data());
  for (int64_t i = 0; i < count; ++i) {
    CHECK(words[static_cast<size_t>(i)] == random_word(stream, begin + static_cast<uint64_t>(i)));
  }
}

uint32_t rounded(uint32_t bits, uint32_t random16) { return round_stochastically(bits, random16); }

void for_every_instruction_set(void (*check)()) {
  for (int isa = static_cast<int>(best_isa()); isa >= 0; --isa) {
    CHECK(set_isa(static_cast<Isa>(isa)));
    check();
  }
  CHECK(set_isa(best_isa()));
}

}  // namespace

TEST(philox_gives_its_known_answers) {
  for (const KnownAnswer& known : ten_rounds) {
    const uint32_t* c = known.counter;
    const RandomBlock<uint32_t> block = philox(RandomBlock<uint32_t>{{c[0], c[1], c[2], c[3]}}, known.key[0], known.key[1]);
    CHECK(std::memcmp(block.word, known.result, sizeof known.result) == 0);
    const RandomStream stream{known.key[1] * (uint64_t{1} << 32) + known.key[0], c[3] * (uint64_t{1} << 32) + c[2]};
    CHECK(random_block(stream, c[0], c[1]).word[2] == known.result[2]);
  }
}

TEST(a_stream_takes_words_from_16_blocks_in_turn) {
  const RandomStream stream{5, 9};
  for (uint32_t i = 0; i < 256; ++i) {
    CHECK(random_word(stream, i) == random_block(stream, i / 64 * 16 + i % 16, 0u).word[i % 64 / 16]);
    CHECK(random_half(stream, 2 * i) == (random_word(stream, i) & 0xffffu));
    CHECK(random_half(stream, 2 * i + 1) == random_word(stream, i) >> 16);
  }
}

TEST(vectors_draw_what_single_numbers_draw) {
  for_every_instruction_set([] {
    const RandomStream stream{0x0123456789abcdefu, 0xfedcba9876543210u};
    for (int64_t count = 0; count < 200; ++count) {
      check_words(stream, static_cast<uint64_t>(count * 7), count);
    }
    for (const uint64_t edge : {uint64_t{1} << 32, uint64_t{1} << 34, uint64_t{1} << 40}) {  // blocks beyond 2^32 too
      check_words(stream, edge - 70, 200);
    }
  });
}

TEST(stochastic_rounding_of_special_values) {
  CHECK(rounded(0x3f800000u, 0xffffu) == 0x3f80u);  // what bf16 holds does not move
  CHECK(rounded(0x3f800001u, 0xffffu) == 0x3f81u && rounded(0x3f800001u, 0xfffeu) == 0x3f80u);
  CHECK(rounded(0x7f7fffffu, 0xffffu) == 0x7f7fu);  // the largest number is not infinity
  CHECK(rounded(0xff7fffffu, 0xffffu) == 0xff7fu);
  CHECK(rounded(0x7f800000u, 0xffffu) == 0x7f80u && rounded(0xff800000u, 0xffffu) == 0xff80u);
  CHECK(rounded(0x7fffffffu, 0xffffu) == 0x7fffu && rounded(0x7f800001u, 0) == 0x7fc0u);
  CHECK(rounded(0x80000000u, 0xffffu) == 0x8000u);
}

TEST(vectors_round_as_single_numbers) {
  for_every_instruction_set([] {
    const RandomStream stream{7, 8};
    std::vector<float> values;
    for (uint32_t high = 0; high < 0x10000u; high += 7) {  // every kind of number, infinities and nans among them
      values.push_back(float_of(high << 16 | (high * 40503u & 0xffffu)));
    }
    values.insert(values.end(), {float_of(0x7f800000u), float_of(0x7f7fffffu), float_of(0x7fffffffu)});
    const auto count = static_cast<int64_t>(values.size());
    std::vector<bf16> results(values.size());
    round_stochastically(values.data(), stream, 3, count, results.data());
    for (size_t i = 0; i < values.size(); ++i) {
      const uint32_t random16 = random_word(stream, 3 + i) & 0xffffu;
      CHECK(results[i].bits == round_stochastically(bits_of(values[i]), random16));
    }
  });
}

TEST(stochastic_rounding_is_right_on_average) {
  const float value = 1.0f + 0.3f / 128.0f;  // 0.3 of the way from 1 to the next bf16
  const int64_t count = 1 << 20;
  std::vector<float> values(count, value);
  std::vector<bf16> results(count);
  round_stochastically(values.data(), {1, 2}, 0, count, results.data());
  int64_t up = 0;
  for (const bf16 result : results) {
    CHECK(to_float(result) == 1.0f || to_float(result) == 1.0078125f);
    up += to_float(result) > 1.0f;
  }
  const double expected = 0.3 * static_cast<double>(count);
  CHECK(std::fabs(static_cast<double>(up) - expected) < 5.0 * std::sqrt(0.7 * expected));
}
