// How the functions of csrc/math are declared: for the host and, under nvcc, the device.
#pragma once

#if defined(__CUDACC__)
#define PYSEQ_RULE static __host__ __device__ inline
#elif defined(__SANITIZE_ADDRESS__)
#define PYSEQ_RULE static inline  // checked code that is inlined everywhere takes minutes to compile
#else
// Internal linkage: each instruction set compiles its own copy. A call for every vector would hand vectors over in memory.
#define PYSEQ_RULE static inline __attribute__((always_inline))
#endif
