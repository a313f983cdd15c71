#include "cpu/linear_top_candidates_rows.h"
