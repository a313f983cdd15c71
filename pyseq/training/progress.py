"""Progress on the terminal, in the log and in files: fairseq's formats, and a JSON-lines file that is always there."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from numbers import Number
from typing import Any, TextIO

from pyseq.errors import ConfigError
from pyseq.metrics import AverageMeter, StopwatchMeter, TimeMeter

logger = logging.getLogger(__name__)

Stats = dict[str, Any]


def format_stat(value: Any) -> Any:
    """A value as fairseq prints it: numbers with ``%g``, meters by their mean or sum."""
    if isinstance(value, AverageMeter):
        return f"{value.avg:g}"
    if isinstance(value, TimeMeter):
        return f"{round(value.avg):g}"
    if isinstance(value, StopwatchMeter):
        return f"{round(value.sum):g}"
    if hasattr(value, "item"):
        value = value.item()
    return f"{value:g}" if isinstance(value, Number) else value


def progress_bar(
    iterator: Iterable[Any],
    log_format: Any = None,
    log_interval: int = 100,
    log_file: str | None = None,
    epoch: int | None = None,
    prefix: str | None = None,
    tensorboard_logdir: str | None = None,
    default_log_format: str = "tqdm",
) -> Progress:
    """Wrap ``iterator`` so that it reports. ``tqdm`` falls back to ``simple`` where stderr is not a terminal."""
    log_format = str(log_format or default_log_format)
    if log_format == "tqdm" and not sys.stderr.isatty():
        log_format = "simple"
    if log_file:
        add_log_file(log_file)
    kinds = {"json": JsonProgress, "simple": SimpleProgress, "tqdm": TqdmProgress, "none": Progress}
    progress = kinds[log_format](iterator, epoch, prefix, log_interval)
    return TensorBoardProgress(progress, tensorboard_logdir) if tensorboard_logdir else progress


def add_log_file(path: str) -> None:
    """Also write the log to ``path``, once."""
    root = logging.getLogger()
    target = os.path.abspath(path)
    if any(isinstance(h, logging.FileHandler) and h.baseFilename == target for h in root.handlers):
        return
    handler = logging.FileHandler(target)
    for existing in root.handlers:
        handler.setFormatter(existing.formatter)
    root.addHandler(handler)


class Progress:
    """Iterates and says nothing (``--log-format none``); the base of the others.

    ``log`` is called after every update and prints at the log interval; ``print`` always prints.
    ``tag`` says what the numbers belong to (``train_inner``, ``train``, ``valid``) and names the logger.
    """

    def __init__(
        self, iterable: Iterable[Any], epoch: int | None = None, prefix: str | None = None, log_interval: int = 100
    ) -> None:
        self.iterable, self.epoch, self.log_interval = iterable, epoch, log_interval
        self.start = getattr(iterable, "n", 0)
        self.size = len(iterable) if isinstance(iterable, Sized) else 0
        self.i = self.start
        parts = [f"epoch {epoch:03d}"] if epoch is not None else []
        self.prefix = " | ".join(parts + ([prefix] if prefix else []))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Any]:
        for i, item in enumerate(self.iterable, start=self.start):
            self.i = i
            yield item

    def due(self, step: int | None) -> bool:
        """Whether the log interval says that update ``step`` (or, without one, this iteration) is printed."""
        return self.log_interval > 0 and (self.i + 1 if step is None else step) % self.log_interval == 0

    def log(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        pass

    def print(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        pass


class SimpleProgress(Progress):
    """One line of text each time."""

    def log(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        if self.due(step):
            text = ", ".join(f"{key}={format_stat(value)}" for key, value in stats.items())
            logging.getLogger(tag or __name__).info(f"{self.prefix}:  {self.i + 1:5d} / {self.size:d} {text}")

    def print(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        text = " | ".join(f"{key} {format_stat(value)}" for key, value in stats.items())
        logging.getLogger(tag or __name__).info(f"{self.prefix} | {text}")


class JsonProgress(Progress):
    """One JSON object a line; numbers are strings, as fairseq writes them."""

    def log(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        if self.due(step):
            update = None if self.epoch is None else self.epoch - 1 + (self.i + 1) / max(self.size, 1)
            record: Stats = {} if self.epoch is None else {"epoch": self.epoch}
            if update is not None:
                record["update"] = round(update, 3)
            record.update({key: format_stat(value) for key, value in stats.items()})
            logging.getLogger(tag or __name__).info(json.dumps(record))

    def print(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        prefix = f"{tag}_" if tag else ""
        record: Stats = {} if self.epoch is None else {"epoch": self.epoch}
        record.update({prefix + key: format_stat(value) for key, value in stats.items()})
        logging.getLogger(tag or __name__).info(json.dumps(record))


class TqdmProgress(SimpleProgress):
    """A moving bar on stderr with the latest numbers beside it."""

    SHOWN = ("loss", "nll_loss", "ppl", "wps", "lr", "gnorm", "eta")

    def __iter__(self) -> Iterator[Any]:
        from tqdm import tqdm

        self.bar = tqdm(
            self.iterable, self.prefix, total=self.size or None, initial=self.start, leave=False, dynamic_ncols=True
        )
        with self.bar:
            for i, item in enumerate(self.bar, start=self.start):
                self.i = i
                yield item

    def log(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        self.bar.set_postfix({k: format_stat(stats[k]) for k in self.SHOWN if k in stats}, refresh=False)

    def print(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode():
            super().print(stats, tag, step)


_writers: dict[str, Any] = {}


class TensorBoardProgress(Progress):
    """Writes every number that another progress prints to TensorBoard as well."""

    def __init__(self, wrapped: Progress, logdir: str) -> None:
        self.wrapped, self.logdir, self.log_interval = wrapped, logdir, wrapped.log_interval
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError("--tensorboard-logdir needs TensorBoard: pip install 'pyseq[tensorboard]'") from None
        self.writer_class = SummaryWriter

    def __len__(self) -> int:
        return len(self.wrapped)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.wrapped)

    def due(self, step: int | None) -> bool:
        return self.wrapped.due(step)

    def log(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        if self.due(step):
            self._write(stats, tag, step)
        self.wrapped.log(stats, tag, step)

    def print(self, stats: Stats, tag: str | None = None, step: int | None = None) -> None:
        self._write(stats, tag, step)
        self.wrapped.print(stats, tag, step)

    def _write(self, stats: Stats, tag: str | None, step: int | None) -> None:
        folder = os.path.join(self.logdir, tag or "")
        if folder not in _writers:
            _writers[folder] = self.writer_class(folder)
        for key, value in stats.items():
            number = value.item() if hasattr(value, "item") else value
            if isinstance(number, (int, float)):
                _writers[folder].add_scalar(key, number, step)
        _writers[folder].flush()


class MetricsFile:
    """``metrics.jsonl``: one JSON object for each log interval, validation and epoch, appended as they come.

    Every object has ``tag``, ``epoch``, ``num_updates`` and ``time`` (seconds since 1970); numbers are numbers.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.file: TextIO | None = None

    def write(self, tag: str, epoch: int, num_updates: int, stats: Stats) -> None:
        if self.file is None:
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        record: Stats = {"tag": tag, "epoch": epoch, "num_updates": num_updates, "time": round(time.time(), 3)}
        for key, value in stats.items():
            number = value.item() if hasattr(value, "item") else value
            if isinstance(number, (int, float, str)) and key not in record:
                record[key] = number
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
