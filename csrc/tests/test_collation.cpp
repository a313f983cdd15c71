#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "data/collation.h"
#include "tests/check.h"

using pyseq::Padding;
using pyseq::TokenRows;
using pyseq::TokenType;

namespace {

using Row = std::vector<int64_t>;

// Rows "1 2 3", "" and "9" of a stream that also holds tokens of no row, in a matrix of 4 x 5.
template <class Token>
Row collated(TokenType type, const Padding& padding) {
  const std::vector<Token> tokens{7, 1, 2, 3, 7, 9};
  const Row starts{1, 6, 5}, lengths{3, 0, 1};
  Row out(4 * 5, -1);
  const TokenRows rows{tokens.data(), type, starts.data(), lengths.data(), 3};
  CHECK(pyseq::first_row_outside(rows, 6) == -1);
  pyseq::collate(rows, padding, out.data(), 4, 5);
  return out;
}

template <class Token>
void check_layouts(TokenType type) {
  CHECK(collated<Token>(type, {0, false, false, false, 0}) ==
        (Row{1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
  CHECK(collated<Token>(type, {0, true, false, false, 0}) ==
        (Row{0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0}));
  CHECK(collated<Token>(type, {0, false, true, false, 0}) ==
        (Row{3, 1, 2, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
  CHECK(collated<Token>(type, {0, true, true, true, 5}) ==
        (Row{0, 0, 5, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0}));
}

template <class Token>
void check_extremes(TokenType type) {
  const std::vector<Token> tokens{std::numeric_limits<Token>::min(), std::numeric_limits<Token>::max()};
  const Row starts{0}, lengths{2};
  Row out(2);
  const TokenRows rows{tokens.data(), type, starts.data(), lengths.data(), 1};
  pyseq::collate(rows, {0, false, false, false, 0}, out.data(), 1, 2);
  CHECK(out == (Row{static_cast<int64_t>(tokens[0]), static_cast<int64_t>(tokens[1])}));
}

}  // namespace

TEST(collation_pads_and_rotates_every_type) {
  check_layouts<uint8_t>(TokenType::kU8);
  check_layouts<int8_t>(TokenType::kI8);
  check_layouts<uint16_t>(TokenType::kU16);
  check_layouts<int16_t>(TokenType::kI16);
  check_layouts<uint32_t>(TokenType::kU32);
  check_layouts<int32_t>(TokenType::kI32);
  check_layouts<uint64_t>(TokenType::kU64);
  check_layouts<int64_t>(TokenType::kI64);
}

TEST(collation_widens_without_loss) {
  check_extremes<uint8_t>(TokenType::kU8);
  check_extremes<int8_t>(TokenType::kI8);
  check_extremes<uint16_t>(TokenType::kU16);
  check_extremes<int16_t>(TokenType::kI16);
  check_extremes<uint32_t>(TokenType::kU32);
  check_extremes<int32_t>(TokenType::kI32);
  check_extremes<int64_t>(TokenType::kI64);
}

TEST(collation_finds_rows_outside_the_tokens) {
  const int64_t huge = std::numeric_limits<int64_t>::max();
  const auto outside = [](Row starts, Row lengths) {
    const auto count = static_cast<int64_t>(starts.size());
    return pyseq::first_row_outside({nullptr, TokenType::kU16, starts.data(), lengths.data(), count}, 10);
  };
  CHECK(outside({0, 10, 4}, {10, 0, 6}) == -1);
  CHECK(outside({0, 5}, {1, 6}) == 1);
  CHECK(outside({-1}, {2}) == 0);
  CHECK(outside({3}, {-1}) == 0);
  CHECK(outside({huge}, {2}) == 0);
  CHECK(outside({2}, {huge}) == 0);
}
