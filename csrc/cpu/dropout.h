// Dropout of an array, with something added or not. The rule is in math/dropout.h.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "math/dropout.h"

namespace pyseq {

// out[i] = dropout(x)[i] + residual[i]; residual may be null. out may be x or residual. `threads` changes no bit.
void dropout(const void* x, const void* residual, void* out, DType dtype, int64_t count, const Dropout& rule,
             int threads);

// What an instruction set does with elements [begin, begin + count) of arrays of one dtype.
using DropoutKernel = void (*)(const void* x, const void* residual, void* out, int64_t begin, int64_t count,
                               const Dropout& rule);

namespace portable {
DropoutKernel dropout_kernel(DType dtype);
}
namespace avx2 {
DropoutKernel dropout_kernel(DType dtype);
}
namespace avx512 {
DropoutKernel dropout_kernel(DType dtype);
}

}  // namespace pyseq
