#include "cpu/attention_rows.h"
