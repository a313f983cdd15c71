// Rows of tokens, padded into one int64 matrix.
#pragma once

#include <cstdint>

namespace pyseq {

enum class TokenType { kU8, kI8, kU16, kI16, kU32, kI32, kU64, kI64 };

// Tokens that lie one after another in memory, usually a memory map. Row r is
// tokens[starts[r] : starts[r] + lengths[r]].
struct TokenRows {
  const void* tokens;
  TokenType type;
  const int64_t* starts;   // in elements
  const int64_t* lengths;  // in elements
  int64_t count;
};

struct Padding {
  int64_t pad;
  bool left;          // padding stands before the tokens
  bool rotate;        // the last token of a row goes to its front, the others move up by one
  bool has_eos;       // with rotate: `eos` takes the place of the row's last token
  int64_t eos;
};

// The first row that is not within `size` elements, or -1. collate() itself does not look.
int64_t first_row_outside(const TokenRows& rows, int64_t size);

// Fills out[out_rows x width]; rows beyond rows.count are padding alone. No row may be longer than width.
void collate(const TokenRows& rows, const Padding& padding, int64_t* out, int64_t out_rows, int64_t width);

}  // namespace pyseq
