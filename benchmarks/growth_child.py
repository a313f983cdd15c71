"""A run whose start is timed, too: ``python -m benchmarks.growth_child WARM_UP [options of pyseq-train]``.

Opening is: the index files read and checked, samples ordered, cut into batches, those of the first epoch shuffled.
Resuming is: the place in the epoch put into a state, and an iterator that goes on from it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from .processes import tell


def own_memory() -> int:
    """Bytes of this process that no file backs: without the pages of the mapped corpus."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def record(monitor: Any) -> list[dict[str, float]]:
    """After each update: the time, its target tokens, and the time waited for data so far."""
    marks: list[dict[str, float]] = []
    after_update, log_update = monitor.after_update, monitor.trainer._log_update
    tokens = 0

    def with_tokens(update: Any, norm: Any) -> None:
        nonlocal tokens
        tokens = sum(int(log["ntokens"]) for log in update.logging_outputs)
        log_update(update, norm)

    def at_end(epoch: Any) -> None:
        after_update(epoch)
        marks.append({"time": time.perf_counter(), "tokens": tokens, "waited": epoch.updates.wait_seconds})

    monitor.trainer._log_update, monitor.after_update = with_tokens, at_end
    return marks


def main(argv: list[str]) -> None:
    from pyseq import metrics, utils
    from pyseq.cli.plugins import load_plugins
    from pyseq.cli.train import build
    from pyseq.config.config import config_from_args
    from pyseq.config.parser import get_training_parser, parse_args_and_arch
    from pyseq.training.epochs import Epochs
    from pyseq.training.loop import train
    from pyseq.training.monitor import Monitor
    from pyseq.training.saving import Saver

    warm_up = int(argv[0])
    load_plugins()
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), argv[1:]))
    utils.set_all_seeds(1)
    metrics.reset()
    trainer = build(cfg)
    start = time.perf_counter()
    epochs = Epochs(cfg, trainer.task, trainer.model)
    epochs.iterator.next_epoch_itr()
    opening, memory = time.perf_counter() - start, own_memory()
    with Monitor(trainer, epochs, Saver(cfg.checkpoint)) as monitor:
        marks = record(monitor)
        train(trainer, epochs, monitor)
    start = time.perf_counter()
    epochs.load_state_dict({**epochs.state_dict(), "epoch": 1, "iterations_in_epoch": warm_up})
    next(epochs.iterator.next_epoch_itr())
    resuming = time.perf_counter() - start
    first, last = marks[warm_up - 1], marks[-1]
    tell({
        "seconds": last["time"] - first["time"],
        "amount": sum(mark["tokens"] for mark in marks[warm_up:]),
        "waited": last["waited"] - first["waited"],
        "opening": opening,
        "resuming": resuming,
        "memory": memory,
    })  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
