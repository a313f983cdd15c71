#define PYSEQ_PORTABLE
#include "cpu/random_fill.h"
