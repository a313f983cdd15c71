#include "cpu/gemm_tiles.h"
