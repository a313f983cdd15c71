// The instruction set that vector code runs with, chosen when the program runs.
#pragma once

#include <stdexcept>

// A call of what is compiled for each instruction set, in the namespace of the one in use: PYSEQ_OF_ISA(gemm_kernel()).
#if defined(__x86_64__)
#define PYSEQ_OF_ISA(call)                                       \
  (::pyseq::current_isa() == ::pyseq::Isa::avx512 ? avx512::call \
   : ::pyseq::current_isa() == ::pyseq::Isa::avx2 ? avx2::call   \
                                                  : portable::call)
#else
#define PYSEQ_OF_ISA(call) portable::call
#endif

// The same for kernels that read weights in fp32 or in bf16 (cpu/packed_linear.h).
#if defined(PYSEQ_HAVE_AVX512BF16)
#define PYSEQ_OF_WEIGHTS(bf16, call) ((bf16) ? avx512bf16::call : PYSEQ_OF_ISA(call))
#else
#define PYSEQ_OF_WEIGHTS(bf16, call) \
  ((bf16) ? throw std::runtime_error("there is no kernel for weights in bf16") : PYSEQ_OF_ISA(call))
#endif

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
