#define PYSEQ_PORTABLE
#include "cpu/gemm_blocks.h"
