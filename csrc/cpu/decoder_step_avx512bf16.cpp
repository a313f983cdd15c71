#include "cpu/decoder_step_rows.h"
