#include "cpu/random_fill.h"
