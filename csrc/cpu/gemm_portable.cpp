#define PYSEQ_PORTABLE
#include "cpu/gemm_tiles.h"
