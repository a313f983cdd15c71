#define PYSEQ_PORTABLE
#include "cpu/grad_norm_blocks.h"
