#include "cpu/dropout_elements.h"
