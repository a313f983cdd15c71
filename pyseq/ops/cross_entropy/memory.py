"""Where the gradient of the logits goes on the CPU.

A new matrix of a hundred megabytes is mapped page by page as it is written, which takes as long as the rest of the
work. So the memory of one gradient is kept, and used again for a later one as soon as nobody holds the first: it is
lent as the storage of a tensor, and comes back when that storage dies.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 20  # bytes; malloc itself keeps smaller blocks
ALIGNMENT = 64


class LentMemory:
    """One block of memory, lent to at most one tensor at a time. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._block: np.ndarray | None = None
        self._is_lent = False

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """An uninitialised contiguous CPU tensor in the block, or None while it is lent.

        The block is replaced where it is too small, or more than four times too large.
        """
        size = shape.numel() * dtype.itemsize
        with self._lock:
            if self._is_lent:
                return None
            self._is_lent = True
        if self._block is None or not size <= self._block.size - ALIGNMENT <= 4 * size:
            self._block = None  # free the old one first
            self._block = np.empty(size + ALIGNMENT, dtype=np.uint8)
        begin = -self._block.ctypes.data % ALIGNMENT
        part = self._block[begin : begin + size]
        # The storage holds `part`, and nothing else does. The callback takes no lock: it may run anywhere.
        weakref.finalize(part, setattr, self, "_is_lent", False).atexit = False
        storage = torch.frombuffer(part, dtype=dtype).untyped_storage()
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]


_kept = LentMemory()


def gradient_like(logits: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of the shape, dtype and device of ``logits``."""
    if logits.device.type == "cpu" and logits.numel() * logits.element_size() >= SMALLEST:
        kept = _kept.empty(logits.shape, logits.dtype)
        if kept is not None:
            return kept
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
