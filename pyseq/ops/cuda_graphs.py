"""CUDA graphs: work that is the same each time is recorded once, and asked for by one call of the host after that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Record = Callable[[Callable[[], Any], Any], Callable[[], Any]]


def record(compute: Callable[[], T], pool: Any = None) -> Callable[[], T]:
    """What ``compute`` asks of the current device, as a CUDA graph. Nothing of it is done yet.

    Args:
        compute: neither waits for the device nor takes memory but from torch; it has been called before, so that
            kernels are loaded. What it reads has to stay where it is.
        pool: of memory, shared by graphs of which one at a time is in use; None: of its own.

    Returns:
        What does it, and returns what ``compute`` has returned: the same tensors each time, written anew.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on using the device, as one that pins memory for batches does.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = compute()

    def replay() -> T:
        graph.replay()
        return out

    return replay
