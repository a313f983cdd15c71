#include "data/collation.h"

#include <algorithm>

namespace pyseq {
namespace {

template <class Token>
void copy_row(const Token* source, int64_t length, const Padding& padding, int64_t* target) {
  if (padding.rotate && length > 0) {
    *target++ = padding.has_eos ? padding.eos : static_cast<int64_t>(source[length - 1]);
    --length;
  }
  for (int64_t i = 0; i < length; ++i) target[i] = static_cast<int64_t>(source[i]);
}

template <class Token>
void collate_as(const TokenRows& rows, const Padding& padding, int64_t* out, int64_t out_rows, int64_t width) {
  const Token* tokens = static_cast<const Token*>(rows.tokens);
  for (int64_t r = 0; r < rows.count; ++r, out += width) {
    const int64_t length = rows.lengths[r];
    const int64_t gap = width - length;
    std::fill_n(padding.left ? out : out + length, gap, padding.pad);
    if (length > 0) copy_row(tokens + rows.starts[r], length, padding, padding.left ? out + gap : out);
  }
  std::fill_n(out, (out_rows - rows.count) * width, padding.pad);
}

}  // namespace

int64_t first_row_outside(const TokenRows& rows, int64_t size) {
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t start = rows.starts[r], length = rows.lengths[r];
    // size - length and not start + length, which may wrap
    if (length < 0 || length > size || start < 0 || start > size - length) return r;
  }
  return -1;
}

void collate(const TokenRows& rows, const Padding& padding, int64_t* out, int64_t out_rows, int64_t width) {
  switch (rows.type) {
    case TokenType::kU8: return collate_as<uint8_t>(rows, padding, out, out_rows, width);
    case TokenType::kI8: return collate_as<int8_t>(rows, padding, out, out_rows, width);
    case TokenType::kU16: return collate_as<uint16_t>(rows, padding, out, out_rows, width);
    case TokenType::kI16: return collate_as<int16_t>(rows, padding, out, out_rows, width);
    case TokenType::kU32: return collate_as<uint32_t>(rows, padding, out, out_rows, width);
    case TokenType::kI32: return collate_as<int32_t>(rows, padding, out, out_rows, width);
    case TokenType::kU64: return collate_as<uint64_t>(rows, padding, out, out_rows, width);
    case TokenType::kI64: return collate_as<int64_t>(rows, padding, out, out_rows, width);
  }
}

}  // namespace pyseq
