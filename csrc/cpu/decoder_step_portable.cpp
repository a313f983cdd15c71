#define PYSEQ_PORTABLE
#include "cpu/decoder_step_rows.h"
