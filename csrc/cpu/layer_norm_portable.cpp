#define PYSEQ_PORTABLE
#include "cpu/layer_norm_rows.h"
