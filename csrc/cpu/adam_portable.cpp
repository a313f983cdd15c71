#define PYSEQ_PORTABLE
#include "cpu/adam_rows.h"
