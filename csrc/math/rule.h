// How the functions of csrc/math are declared: for the host and, under nvcc, the device.
#pragma once

#if defined(__CUDACC__)
#define PYSEQ_RULE static __host__ __device__ inline
#else
#define PYSEQ_RULE static inline  // internal linkage: each instruction set compiles its own copy
#endif
