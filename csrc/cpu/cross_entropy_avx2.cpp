#include "cpu/cross_entropy_rows.h"
