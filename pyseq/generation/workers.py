"""Several batches at a time, one to a core.

Steps of a search are small: two cores do two batches in less time than two batches one after the other on both. Workers
are threads, since what takes time runs outside Python's lock; each has a copy of the generator that shares the weights.
"""

from __future__ import annotations

import copy
import ctypes
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import nn

Batch = TypeVar("Batch")
Found = TypeVar("Found")


def replicas(generator: Any, models: list[Any], count: int, *shared: Any) -> list[tuple[Any, list[Any]]]:
    """``count`` pairs of a generator and its models, the first of them the given ones.

    Parameters, buffers and what ``shared`` names are the same objects in all of them; all else is copied.
    """
    memo: dict[int, Any] = {id(thing): thing for thing in shared}
    for module in [generator, *models]:
        if isinstance(module, nn.Module):
            memo |= {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return [(generator, models)] + [copy.deepcopy((generator, models), dict(memo)) for _ in range(count - 1)]


def in_order(
    batches: Iterable[Batch], generate: Callable[[Any, list[Any], Batch], Found], workers: list[tuple[Any, list[Any]]]
) -> Iterator[tuple[Batch, Found]]:
    """Each batch with what ``generate(generator, models, batch)`` returns for it, in the order of ``batches``.

    Args:
        workers: what :func:`replicas` returned. If there is one, batches are done in the calling thread, as they are
            asked for; otherwise in a thread for each, in which torch has one thread.

    Raises:
        Whatever ``generate`` raises, from the first batch that it is raised for. The other workers are stopped then, as
        they are when the caller gives up.
    """
    if len(workers) == 1:
        for batch in batches:
            yield batch, generate(*workers[0], batch)
        return
    idle: queue.SimpleQueue[tuple[Any, list[Any]]] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    running = _Running()

    def work(batch: Batch) -> Found:
        worker = idle.get()
        try:
            with running:
                return generate(*worker, batch)
        finally:
            idle.put(worker)

    threads_before = torch.get_num_threads()
    with ThreadPoolExecutor(len(workers), "generation", torch.set_num_threads, (1,)) as pool:
        waiting: deque[tuple[Batch, Future[Found]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(work, batch)))
                if len(waiting) > 2 * len(workers):
                    done, found = waiting.popleft()
                    yield done, found.result()
            while waiting:
                done, found = waiting.popleft()
                yield done, found.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running.interrupt()
            raise
        finally:
            torch.set_num_threads(threads_before)  # the setting of a thread is that of threads to come


class _Running:
    """The threads that are inside ``with self``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads: set[int] = set()

    def __enter__(self) -> None:
        with self.lock:
            self.threads.add(threading.get_ident())

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.threads.discard(threading.get_ident())

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in them; they would finish their batches first otherwise."""
        with self.lock:  # none of them leaves meanwhile: outside, nothing would catch it
            for ident in self.threads:
                error = ctypes.py_object(KeyboardInterrupt)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), error)
