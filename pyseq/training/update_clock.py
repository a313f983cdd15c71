"""Where the time of an update goes, by part. For ``--profile``, and for benchmarks.

The parts are found by wrapping methods of a trainer while somebody looks, so an unwatched update does not pay for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pyseq.training.epochs import Epoch
from pyseq.training.trainer import Trainer, Update

PARTS = ("data wait", "forward", "criterion", "backward", "tail")  # tail: average, norm, clip, update
AFTERWARDS = "log, validate, save"
Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]


@contextmanager
def wrapped_parts(trainer: Trainer, wrap: Wrap) -> Iterator[None]:
    """Replace each method that is a part of the update by ``wrap(part, method)``, and put it back in the end.

    Calls nest: "forward" and "backward" are called within "criterion".
    """
    model: Any = trainer.model
    compiled = getattr(model, "_compiled_call_impl", None) is not None  # what model(...) calls then
    methods: tuple[tuple[Any, str, str], ...] = (
        (model, "_compiled_call_impl" if compiled else "forward", "forward"),
        (trainer.task, "train_step", "criterion"),
        (trainer.optimizer, "backward", "backward"),
        (trainer, "average_and_clip_gradients", "tail"),
        (trainer.task, "optimizer_step", "tail"),
    )
    before = [(owner, name, name in vars(owner), getattr(owner, name)) for owner, name, _ in methods]
    try:
        for owner, name, part in methods:
            setattr(owner, name, wrap(part, getattr(owner, name)))
        yield
    finally:
        for owner, name, own, method in before:
            setattr(owner, name, method) if own else delattr(owner, name)


class UpdateClock:
    """Seconds by part, update by update.

    Attributes:
        updates: of each update its parts, "other" (what is in no part), "seconds" in all, "log, validate, save" (after
            the update, not in its "seconds") and "tokens" (of the target).
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.updates: list[dict[str, float]] = []
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._tokens = 0
        self._waited: tuple[Any, float] = (None, 0.0)  # for an epoch's data, until the update began
        self._began = time.perf_counter()
        self._ended: float | None = None  # of an update whose AFTERWARDS is not known yet

    @contextmanager
    def running(self) -> Iterator[UpdateClock]:
        with wrapped_parts(self.trainer, self._timed):
            yield self

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                if self.trainer.use_cuda:
                    torch.cuda.synchronize(self.trainer.device)
                self._parts[part] += time.perf_counter() - start
                if args and isinstance(args[0], Update):
                    self._tokens = sum(int(log.get("ntokens", 0)) for log in args[0].logging_outputs)

        return run

    def begin_update(self, epoch: Epoch) -> None:
        """Logging, validation and saving are done; next comes the wait for data."""
        self._began = time.perf_counter()
        self._waited = epoch.updates, epoch.updates.wait_seconds
        if self._ended is not None:
            self.updates[-1][AFTERWARDS] = self._began - self._ended
            self._ended = None

    def end_update(self, epoch: Epoch) -> None:
        """The update is done; what follows is logging."""
        self._ended = ended = time.perf_counter()
        parts, self._parts = self._parts, dict.fromkeys(PARTS, 0.0)
        parts["criterion"] -= parts["forward"] + parts["backward"]
        data, before = self._waited
        parts["data wait"] = epoch.updates.wait_seconds - (before if data is epoch.updates else 0.0)
        seconds = ended - self._began
        other = seconds - sum(parts.values())
        self.updates.append({**parts, "other": other, AFTERWARDS: 0.0, "seconds": seconds, "tokens": self._tokens})
