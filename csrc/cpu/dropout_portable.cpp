#define PYSEQ_PORTABLE
#include "cpu/dropout_elements.h"
