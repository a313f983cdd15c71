#include "cpu/gemm_blocks.h"
