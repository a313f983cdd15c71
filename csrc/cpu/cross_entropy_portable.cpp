#define PYSEQ_PORTABLE
#include "cpu/cross_entropy_rows.h"
