"""pyseq-train as it is, with a clock in it: ``python -m benchmarks.train_child WARM_UP [options of pyseq-train]``.

Prints, for the updates after the first WARM_UP: seconds, target tokens, operations, seconds of each part of an update,
and the loss of every update (nats a target token). On a CUDA device parts are host time; the total is not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .flops import Counter, lengths_of
from .processes import tell
from .summary import PARTS


class Clock:
    """Sums over the counted updates."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.losses: list[tuple[Any, Any]] = []  # of all updates: sum and tokens
        self.updates = 0
        self.restart()

    def restart(self) -> None:
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.tokens = self.operations = 0.0
        self.counted = 0
        self.last = self.begin = time.perf_counter()

    def timed(self, part: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return fn(*args, **kwargs)
            finally:
                self.parts[part] += time.perf_counter() - start

        return run

    def end_update(self, waited: float) -> None:
        """``waited``: seconds of waiting for data, of this update."""
        self.updates += 1
        self.counted += 1
        self.parts["data wait"] += waited
        if self.updates == self.warm_up:
            synchronize()
            self.restart()
        self.last = time.perf_counter()

    def figures(self) -> dict[str, Any]:
        synchronize()
        seconds = time.perf_counter() - self.begin if torch.cuda.is_available() else self.last - self.begin
        parts = dict(self.parts)
        parts["criterion"] -= parts["forward"] + parts["backward"]  # what was measured around the step contains them
        parts = {name: spent / max(self.counted, 1) for name, spent in parts.items()}
        parts["other"] = seconds / max(self.counted, 1) - sum(parts.values())
        return {
            "seconds": seconds,
            "tokens": self.tokens,
            "flops": self.operations,
            "updates": self.counted,
            "parts": parts,
            "losses": [float(total) / float(tokens) for total, tokens in self.losses],
            "device_bytes": device_peak(),
        }


def device_peak() -> int | None:
    """Peak of torch's memory on the GPU in bytes; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def watched(clock: Clock, trainer: Any, monitor: Any) -> Iterator[None]:
    """Measure around what the loop calls; nothing of the arithmetic changes."""
    from pyseq.training.update_clock import wrapped_parts

    task = trainer.task
    train_step, update, after_update = task.train_step, trainer.update, monitor.after_update
    counter, padding = Counter(trainer.model), task.target_dictionary.pad()
    pairs = hasattr(trainer.model, "encoder")
    state = {"waited": 0.0}

    def step(*args: Any, **kwargs: Any) -> Any:
        result = train_step(*args, **kwargs)
        total, tokens = clock.losses[-1]
        clock.losses[-1] = total + result[2]["loss"], tokens + result[2]["ntokens"]
        return result

    @contextmanager
    def counted(samples: list[Any]) -> Iterator[Any]:
        clock.losses.append((0, 0))
        for sample in samples:
            clock.tokens += int(sample["ntokens"])
            if sample["target"].dim() == 2 and not sample["target"].is_cuda:
                clock.operations += counter.of(*lengths_of(sample, padding, pairs))
        with update(samples) as made:
            yield made

    def at_end(epoch: Any) -> None:
        after_update(epoch)
        waited = epoch.updates.wait_seconds
        clock.end_update(waited - state["waited"] if waited >= state["waited"] else waited)
        state["waited"] = waited

    task.train_step, trainer.update, monitor.after_update = step, counted, at_end
    with wrapped_parts(trainer, clock.timed):
        clock.restart()
        yield


def main(argv: list[str]) -> None:
    from pyseq.cli import train as command
    from pyseq.cli.run import run

    clock, loop = Clock(int(argv[0])), command.train

    def train(trainer: Any, epochs: Any, monitor: Any) -> None:
        with watched(clock, trainer, monitor):
            loop(trainer, epochs, monitor)
        tell(clock.figures())

    command.train = train
    sys.argv = ["pyseq-train", *argv[1:]]
    run(lambda _: command.main(argv[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
