"""Making batches ahead of their use: in worker processes, or in a thread.

Whichever way a batch is made, an exception on the way reaches the consumer as it was raised.
"""

from __future__ import annotations

import logging
import math
import pickle
import queue
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils.data

from pyseq.errors import DataError
from pyseq.utils import apply_to_sample

logger = logging.getLogger(__name__)


class Failure:
    """An exception on its way from where a batch was made to where it is used."""

    def __init__(self, error: Exception, where: str) -> None:
        self.error, self.where = error, where
        self.trace = traceback.format_exc()

    def reraise(self) -> None:
        """Raise the exception, with the traceback of the other side as its cause."""
        error = self.error
        try:
            raise error from RemoteTraceback(f"in {self.where}:\n{self.trace}")
        finally:
            del self, error  # or the exception would refer to itself through this frame, and stay

    def __reduce__(self) -> Any:
        error = self.error
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return rebuild_failure, (error, self.where, self.trace)


class RemoteTraceback(Exception):
    """The traceback of another process or thread, as text."""


def rebuild_failure(error: Exception, where: str, trace: str) -> Failure:
    failure = Failure(error, where)
    failure.trace = trace
    return failure


class BatchFetcher:
    """The batch of a list of indices. Indexable, as torch's DataLoader wants it."""

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn
        whole = hasattr(dataset, "collate_indices") and collate_fn == getattr(dataset, "collater", None)
        self._at_once = dataset.collate_indices if whole else None

    def __getitem__(self, indices: Sequence[int]) -> Any:
        if self._at_once is not None:
            return self._at_once(indices)
        return self.collate_fn([self.dataset[int(index)] for index in indices])


class WorkerFetcher(BatchFetcher):
    """Makes batches in a worker: gives a :class:`Failure` instead of raising, and small tensors by value."""

    def __getitem__(self, indices: Sequence[int]) -> Any:
        try:
            return apply_to_sample(by_value, super().__getitem__(indices))
        except Exception as error:
            return Failure(error, "a data worker")


# Below this size a copy through the pipe is several times faster than a file of shared memory for each tensor.
MOST_BYTES_BY_VALUE = 1 << 20


class TensorByValue:
    """A tensor that is pickled as its numbers; it arrives as a tensor."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        return torch.from_numpy, (self.array,)


def by_value(tensor: torch.Tensor) -> Any:
    common = tensor.dtype in (torch.int64, torch.int32, torch.float32, torch.bool)
    plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.requires_grad
    return TensorByValue(tensor.numpy()) if common and plain and tensor.nbytes <= MOST_BYTES_BY_VALUE else tensor


class BatchLoader:
    """Iterable over the batches of ``batches``, made in this process or in ``num_workers`` others.

    Nothing happens before the first batch is asked for. Memory is pinned if CUDA is in use by then.

    Args:
        dataset: samples by index.
        collate_fn: makes a batch of samples.
        batches: the indices of each batch.
        num_workers: processes that make batches; 0: this one, when a batch is asked for.
        prefetch: batches made ahead by all workers together, two for each at least.
        timeout: seconds to wait for a worker; 0: for ever.
        seed: of the random generators in the workers.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any],
        batches: Sequence[Any],
        num_workers: int = 0,
        prefetch: int = 0,
        timeout: float = 0,
        seed: int = 0,
    ) -> None:
        self.dataset, self.collate_fn, self.batches = dataset, collate_fn, batches
        self.num_workers, self.prefetch, self.timeout, self.seed = num_workers, prefetch, timeout, seed

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return self._from_workers() if self.num_workers > 0 else self._from_here()

    def _from_here(self) -> Iterator[Any]:
        fetch = BatchFetcher(self.dataset, self.collate_fn)
        pin = torch.cuda.is_initialized()
        for indices in self.batches:
            batch = fetch[indices]
            yield apply_to_sample(lambda t: t.pin_memory(), batch) if pin else batch

    def _from_workers(self) -> Iterator[Any]:
        batches: Any = iter(self._data_loader())
        batch: Any = None
        try:
            for n in range(1, len(self) + 1):
                try:
                    batch = next(batches)
                except RuntimeError as error:
                    raise self._worker_error(error) from error
                if n == len(self):
                    batches = None
                if isinstance(batch, Failure):
                    batch.reraise()
                yield batch
        finally:
            # Workers stop when the last reference to the loader goes. One that waits for the garbage collector takes
            # seconds to: by then its queues may be closed.
            batches = batch = None

    def _data_loader(self) -> torch.utils.data.DataLoader[Any]:
        return torch.utils.data.DataLoader(
            WorkerFetcher(self.dataset, self.collate_fn),  # type: ignore[arg-type]
            batch_size=None,
            sampler=self.batches,
            collate_fn=identity,
            num_workers=self.num_workers,
            prefetch_factor=max(2, math.ceil(self.prefetch / self.num_workers)),
            pin_memory=torch.cuda.is_initialized(),
            timeout=self.timeout,
            multiprocessing_context="fork",
            # The loader's seed for its workers would otherwise be drawn from, and advance, torch's global generator.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _worker_error(self, error: RuntimeError) -> Exception:
        if "DataLoader" not in str(error):
            return error
        return DataError(
            f"{str(error).strip().rstrip('.')} (--num-workers {self.num_workers}). A worker that is killed has mostly "
            "run out of memory, or of shared memory (/dev/shm): use fewer workers, or --num-workers 0."
        )


def identity(value: Any) -> Any:
    return value


class BufferedIterator:
    """Iterates in a background thread, up to ``size`` items ahead.

    The thread starts with the first item asked for and ends with the last one, with an exception, or when this
    iterator is closed, garbage collected, or the process exits.

    Args:
        size: number of items held ready; at least 1.
        iterable: has a length.
    """

    def __init__(self, size: int, iterable: Any) -> None:
        self.total = len(iterable)
        self._iterable = iterable
        self._queue: queue.Queue[Any] = queue.Queue(max(size, 1))
        self._thread: threading.Thread | None = None
        self.n = 0
        self._ended = False
        self._last_warning = time.monotonic()

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> BufferedIterator:
        return self

    def take(self, n: int) -> BufferedIterator:
        """End after ``n`` items in all."""
        self.total = min(self.total, n)
        return self

    def close(self) -> None:
        """Stop the thread; there are no further items."""
        self._ended = True
        if self._thread is not None:
            self._stop()

    def __next__(self) -> Any:
        if self._ended or self.n >= self.total:
            self.close()
            raise StopIteration
        if self._thread is None:
            self._start()
        self._warn_if_slow()
        item = self._get()
        if isinstance(item, Failure):
            failure, item = item, None
            self.close()
            failure.reraise()
        if item is END:
            self.close()
            raise StopIteration
        self.n += 1
        return item

    def _start(self) -> None:
        stop = threading.Event()
        # The thread must not refer to this object, or it would never be garbage collected.
        args = (self._iterable, self.total, self._queue, stop)
        self._thread = threading.Thread(target=fill, args=args, name="pyseq batches", daemon=True)
        self._stop = weakref.finalize(self, stop_thread, self._thread, self._queue, stop)
        self._thread.start()

    def _get(self) -> Any:
        assert self._thread is not None
        while True:
            try:
                return self._queue.get(timeout=5)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    raise RuntimeError("the thread that makes batches has died") from None

    def _warn_if_slow(self) -> None:
        if self._queue.empty() and self.n > self._queue.maxsize and time.monotonic() - self._last_warning > 900:
            self._last_warning = time.monotonic()
            logger.debug("the batch buffer is empty: --num-workers may help if training waits for data")


END = object()


def fill(iterable: Any, count: int, items: queue.Queue[Any], stop: threading.Event) -> None:
    """Put ``count`` items of ``iterable`` and then END, or a Failure, into ``items``, until ``stop``."""

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.2)
                return True
            except queue.Full:
                pass
        return False

    try:
        iterator = iter(iterable)
        for _ in range(count):
            if not put(next(iterator)):
                return
    except StopIteration:
        pass
    except Exception as error:
        put(Failure(error, "the thread that makes batches"))
        return
    put(END)


def stop_thread(thread: threading.Thread, items: queue.Queue[Any], stop: threading.Event) -> None:
    stop.set()
    try:
        while True:  # room for an item that the thread is about to put
            items.get_nowait()
    except queue.Empty:
        pass
    if thread is not threading.current_thread():
        thread.join(timeout=1)
