"""Checkpoints that are written by a thread while training goes on."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Runs one job at a time in a thread. Its error is raised in the caller's thread, once.

    The thread is no daemon: a process that ends, however it ends, waits for the file.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run ``job`` beside what the caller does; waits for the one before."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint writer")
        self._thread.start()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # also what ends a thread without a word, SystemExit among it
            self._error = error

    def check(self) -> None:
        """Raise the error of a job that has ended with one. Does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the job that runs, if one does, and raise its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self, raising: bool) -> None:
        """Wait at the end of a run. ``raising``: the run ends by an error of its own, so the job's is only logged."""
        try:
            self.wait()
        except Exception as error:
            if not raising:
                raise
            logger.error("%s", error)


def snapshot(value: Any, copied: bool = True) -> Any:
    """``value`` with every tensor on the CPU; ``copied``: as a copy that nothing changes any more.

    The copy takes as much memory as the tensors have elements. Tensors that lie in the same place, as tied weights do,
    are one tensor in it, and every other has memory of its own.
    """
    return _snapshot(value, copied, {})


def _snapshot(value: Any, copied: bool, seen: dict[Any, Tensor]) -> Any:
    if torch.is_tensor(value):
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() == 0 or place not in seen:
            seen[place] = value.detach().to("cpu", copy=copied)
        return seen[place]
    if isinstance(value, dict):
        new = copy.copy(value)
        for key, item in value.items():
            new[key] = _snapshot(item, copied, seen)
        return new
    if type(value) in (list, tuple):
        return type(value)(_snapshot(item, copied, seen) for item in value)
    return copy.deepcopy(value)
