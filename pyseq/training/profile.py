"""``--profile``: a trace of a few updates, and two tables of where their time went."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from pyseq.errors import ConfigError
from pyseq.training.epochs import Epoch
from pyseq.training.trainer import Trainer
from pyseq.training.update_clock import AFTERWARDS, PARTS, UpdateClock, wrapped_parts

logger = logging.getLogger(__name__)

MARK = "update: "  # begins the names of parts in the trace
OPERATORS = 15


def parse_updates(text: str) -> tuple[int, int]:
    """``10-14`` as (10, 14). Raises ConfigError unless there is an update before the first to be timed."""
    match = re.fullmatch(r"(\d+)-(\d+)", text.strip())
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 2 <= first <= last:
        raise ConfigError(f"--profile-updates '{text}': expected FIRST-LAST, from update 2 on, like 10-14")
    return first, last


class Profile:
    """Times as many updates as it then traces; the monitor calls it around every update.

    The updates before ``first`` are timed without the tracer, whose own work would count. They are timed part by part,
    with a wait for the GPU after each; the traced ones run as always.
    """

    def __init__(self, trainer: Trainer, folder: str, updates: str) -> None:
        self.trainer = trainer
        self.first, self.last = parse_updates(updates)
        self.timed = range(max(2, 2 * self.first - self.last - 1), self.first)
        self.path = os.path.join(folder, f"profile_{self.first}-{self.last}.json")
        self.clock = UpdateClock(trainer)
        self._done = 0  # updates of this process
        self._timing, self._tracing = ExitStack(), ExitStack()
        self._tracer: torch.profiler.profile | None = None

    def begin_update(self, epoch: Epoch) -> None:
        self.clock.begin_update(epoch)
        coming = self._done + 1
        if self.timed and coming == self.timed[0]:
            self._timing.enter_context(self.clock.running())
        if coming == self.first:
            self._timing.close()
            self._begin_trace()

    def end_update(self, epoch: Epoch) -> None:
        self._done += 1
        if self._done in self.timed:
            self.clock.end_update(epoch)
        elif self._done == self.last:
            self.close()

    def close(self) -> None:
        """Write and tell what there is; also called where the run ends early."""
        self._timing.close()
        if self._tracer is not None:
            self._tracing.close()
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            self._tracer.export_chrome_trace(self.path)
            for line in self.report(self._tracer):
                logger.info("%s", line)
            logger.info("trace of updates %d-%d: %s (open it in chrome://tracing or ui.perfetto.dev)",
                        self.first, self._done, self.path)  # fmt: skip
            self._tracer = None
        elif self._done < self.first:
            logger.warning("--profile: the run ended at its update %d, before the first to trace (%d): nothing written",
                           self._done, self.first)  # fmt: skip

    def _begin_trace(self) -> None:
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.trainer.use_cuda else [])
        self._tracer = self._tracing.enter_context(torch.profiler.profile(activities=activities))
        self._tracing.enter_context(wrapped_parts(self.trainer, marked))

    def report(self, tracer: torch.profiler.profile) -> list[str]:
        """The tables, line by line."""
        lines = []
        if self.clock.updates:
            lines.append(f"where the time of {len(self.clock.updates)} updates before the trace went, in ms an update:")
            lines += table(self.part_rows())
        traced = self._done - self.first + 1
        where = "GPU" if self.trainer.use_cuda else "CPU"
        lines.append(f"operators with the most {where} time of their own in {traced} traced updates, in ms an update:")
        return lines + table(operator_rows(tracer, traced, self.trainer.use_cuda))

    def part_rows(self) -> list[tuple[str, float, str]]:
        updates = self.clock.updates
        names = (*PARTS, "other", AFTERWARDS)
        sums = {name: sum(update[name] for update in updates) for name in names}
        return [(name, 1000 * sums[name] / len(updates), "") for name in names]


def operator_rows(tracer: torch.profiler.profile, updates: int, use_cuda: bool) -> list[tuple[str, float, str]]:
    """Name, ms an update and number of calls of the operators that take longest, and of the rest together."""
    averages = [average for average in tracer.key_averages() if not average.key.startswith(MARK)]

    def own(average: Any) -> float:
        return float(average.self_device_time_total if use_cuda else average.self_cpu_time_total)

    averages.sort(key=own, reverse=True)
    rows = [
        (average.key[:60], own(average) / 1000 / updates, f"{average.count / updates:g} calls")
        for average in averages[:OPERATORS]
    ]
    return [*rows, ("the rest", sum(map(own, averages[OPERATORS:])) / 1000 / updates, "")]


def table(rows: list[tuple[str, float, str]]) -> list[str]:
    """Lines of name, time, share of the whole, remark."""
    width, total = max(len(name) for name, _, _ in rows), sum(time for _, time, _ in rows) or 1.0
    return [f"  {name:{width}}  {ms:10.2f}  {100 * ms / total:5.1f} %  {remark}".rstrip() for name, ms, remark in rows]


def marked(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(MARK + part):
            return method(*args, **kwargs)

    return run
