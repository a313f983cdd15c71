#define PYSEQ_PORTABLE
#include "cpu/attention_rows.h"
