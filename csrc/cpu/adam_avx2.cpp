#include "cpu/adam_rows.h"
