#include "cpu/grad_norm_blocks.h"
