#include "cpu/layer_norm_rows.h"
