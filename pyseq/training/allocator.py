"""Memory of tensors on the CPU: what is freed is kept, and is used again.

By default glibc maps every block of more than a few MB anew and gives it back when it is freed, so the large
temporaries of each update (logits, their gradient) page-fault every time. And torch asks it for aligned blocks, which
leave holes that the next tensor of the same size does not fit (``csrc/torch/allocator.cpp``).
"""

from __future__ import annotations

import ctypes
import sys

from pyseq.ops.dispatch import torch_module

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and do not give freed memory back to the system, in this process.

    Tensors that torch makes from then on come from :func:`use_malloc`, where that is to be had.

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
    use_malloc()
    return all(taken)


def use_malloc() -> bool:
    """Let torch take the memory of CPU tensors from ``malloc``, whose holes are used again.

    Returns:
        Whether it does: ``pyseq._torch`` has to be built for exactly this torch.
    """
    native = torch_module()
    if native is not None:
        native.install_allocator()
    return native is not None
