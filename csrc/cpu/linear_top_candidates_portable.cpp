#define PYSEQ_PORTABLE
#include "cpu/linear_top_candidates_rows.h"
