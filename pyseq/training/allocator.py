"""glibc's allocator, told to keep what is freed.

By default glibc maps every block of more than a few MB anew and gives it back when it is freed, so the large
temporaries of each update (logits, their gradient) page-fault every time.
"""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and do not give freed memory back to the system, in this process.

    Returns:
        Whether the C library took the settings; others than glibc have no ``mallopt``.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, 2**31 - 1), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD_BYTES))
    taken = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(taken)
