// The instruction set that vector code runs with, chosen when the program runs.
#pragma once

namespace pyseq {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2 };

// The best that this processor has.
Isa best_isa();

// The one in use: the best, unless set_isa chose a lower one.
Isa current_isa();

// Whether the kernels of bf16 products (avx512bf16) can be used with it: the processor has AVX512_BF16, and the compiler knew
// of it. The instruction takes subnormal numbers for 0.
bool has_bf16_products();

// Who made this processor: "amd", "intel", or "other".
const char* vendor();

// False, and no change, where this processor does not have it.
bool set_isa(Isa isa);

}  // namespace pyseq
