"""When a checkpoint is saved, under which names, and which old ones are removed."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyseq.config.groups import CheckpointConfig
from pyseq.errors import ConfigError, nearest
from pyseq.training import distributed
from pyseq.training.checkpoint_file import copy_checkpoint_file, save_checkpoint_file
from pyseq.training.checkpoint_writer import CheckpointWriter, snapshot
from pyseq.training.epochs import Epochs
from pyseq.training.memory import is_out_of_memory
from pyseq.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass
class Saved:
    """What saving one checkpoint took: seconds until training went on, and until the file was on the disk."""

    path: str
    epoch: int
    num_updates: int
    score: float | None
    begun: float  # by time.perf_counter
    stall: float = 0.0
    seconds: float = 0.0

    def tell(self) -> None:
        text = "Saved checkpoint %s (epoch %d @ %d updates, score %s) (writing took %s seconds; training waited %.3f)"
        logger.info(text, self.path, self.epoch, self.num_updates, self.score, self.seconds, self.stall)


class Saver:
    """Writes checkpoints by fairseq's rules and remembers the best validation result.

    A checkpoint is copied in memory and written while training goes on; an error of the writing is raised by the next
    :meth:`finished`, :meth:`save` or :meth:`close`.

    Attributes:
        best: the best value of --best-checkpoint-metric so far, or None.
        stalled: validations since it improved.
    """

    def __init__(self, cfg: CheckpointConfig) -> None:
        self.cfg = cfg
        self.best: float | None = None
        self.stalled = 0
        self._best_for_patience: float | None = None
        self._writer = CheckpointWriter()
        self._finished: list[Saved] = []

    def metric_of(self, stats: dict[str, Any], subset: str) -> float:
        """The value of --best-checkpoint-metric. Raises ConfigError with the nearest names if it was not logged."""
        name = self.cfg.best_checkpoint_metric
        if name not in stats:
            raise ConfigError(
                f"--best-checkpoint-metric {name}: validation on '{subset}' logs no such value. {nearest(name, stats)}"
            )
        return float(stats[name])

    def is_better(self, a: float, b: float) -> bool:
        """Whether ``a`` is at least as good as ``b``."""
        return a >= b if self.cfg.maximize_best_checkpoint_metric else a <= b

    def best_with(self, value: float) -> float | None:
        return value if self.best is None or self.is_better(value, self.best) else self.best

    def out_of_patience(self, value: float | None) -> bool:
        """Count a validation towards --patience; True when there were too many without strict improvement."""
        if value is None or self.cfg.patience <= 0:
            return False
        previous = self._best_for_patience
        if previous is None or (value != previous and self.is_better(value, previous)):
            self._best_for_patience, self.stalled = value, 0
            return False
        self.stalled += 1
        return self.stalled >= self.cfg.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "patience_best": self._best_for_patience, "patience_stalled": self.stalled}

    def load_state_dict(self, extra_state: dict[str, Any]) -> None:
        self.best = extra_state.get("best")
        self._best_for_patience = extra_state.get("patience_best")
        self.stalled = extra_state.get("patience_stalled", 0)

    def save(self, trainer: Trainer, epochs: Epochs, value: float | None, end_of_epoch: bool) -> None:
        """Write one checkpoint under every name that applies now, then remove those that are not to be kept.

        Raises:
            CheckpointError: this one, or the one before, could not be written.
        """
        start = time.perf_counter()
        self._writer.wait()  # which names apply depends on the files there are
        epoch, updates = epochs.iterator.epoch, trainer.num_updates
        names = self._names(epoch, updates, value, end_of_epoch)
        if value is not None:
            self.best = self.best_with(value)
        if self.cfg.no_save or not distributed.is_master() or not names:
            return
        state = trainer.state_dict()
        state["extra_state"].update(train_iterator=epochs.state_dict(), val_loss=value, **self.state_dict())
        paths = [os.path.join(self.cfg.save_dir, name) for name in names]
        saved = Saved(paths[0], epoch, updates, value, start)
        copy = None if self.cfg.write_checkpoints_synchronously else copy_if_there_is_memory(state)
        if copy is None:
            self._write(snapshot(state, copied=False), paths, end_of_epoch, saved)
            saved.stall = saved.seconds
        else:
            saved.stall = time.perf_counter() - start
            self._writer.start(lambda: self._write(copy, paths, end_of_epoch, saved))

    def _write(self, state: dict[str, Any], paths: list[str], end_of_epoch: bool, saved: Saved) -> None:
        save_checkpoint_file(state, paths[0])
        for path in paths[1:]:
            copy_checkpoint_file(paths[0], path)
        saved.seconds = time.perf_counter() - saved.begun
        self._prune(end_of_epoch)
        self._finished.append(saved)

    def finished(self) -> list[Saved]:
        """What was saved since the last call. Raises CheckpointError if writing failed. Does not wait."""
        self._writer.check()
        found, self._finished = self._finished, []
        return found

    def wait(self) -> None:
        """Wait for the checkpoint that is being written. Raises CheckpointError if writing failed."""
        self._writer.wait()

    def close(self, raising: bool) -> None:
        """Wait for the checkpoint that is being written. ``raising``: an error is on its way already."""
        self._writer.close(raising)

    def _names(self, epoch: int, updates: int, value: float | None, end_of_epoch: bool) -> list[str]:
        cfg, suffix = self.cfg, self.cfg.checkpoint_suffix
        by_epoch = end_of_epoch and not cfg.no_epoch_checkpoints and epoch % cfg.save_interval == 0
        every = cfg.save_interval_updates
        names = []
        if by_epoch:
            names.append(f"checkpoint{epoch}{suffix}.pt")
        if not end_of_epoch and every > 0 and updates % every == 0:
            names.append(f"checkpoint_{epoch}_{updates}{suffix}.pt")
        if value is not None and (self.best is None or self.is_better(value, self.best)):
            names.append(f"checkpoint_best{suffix}.pt")
        if value is not None and cfg.keep_best_checkpoints > 0 and self._among_best(value):
            # The last digit tells apart two checkpoints whose scores print alike.
            names.append(f"checkpoint.best_{cfg.best_checkpoint_metric}_{value:.3f}{updates % 10}{suffix}.pt")
        if not cfg.no_last_checkpoints:
            names.append(f"checkpoint_last{suffix}.pt")
        return names

    def _best_pattern(self) -> str:
        metric = re.escape(self.cfg.best_checkpoint_metric)
        return rf"checkpoint\.best_{metric}_(-?\d+\.?\d*){re.escape(self.cfg.checkpoint_suffix)}\.pt"

    def _among_best(self, value: float) -> bool:
        kept = numbered(self.cfg.save_dir, self._best_pattern())
        if len(kept) < self.cfg.keep_best_checkpoints:
            return True
        worst = min(kept)[0] if self.cfg.maximize_best_checkpoint_metric else max(kept)[0]
        return self.is_better(value, worst)

    def _prune(self, end_of_epoch: bool) -> None:
        cfg, suffix = self.cfg, re.escape(self.cfg.checkpoint_suffix)
        if not end_of_epoch and cfg.keep_interval_updates > 0:
            every = cfg.keep_interval_updates_pattern
            self._keep(
                rf"checkpoint_\d+_(\d+){suffix}\.pt",
                cfg.keep_interval_updates,
                lambda updates: every != -1 and updates % every == 0,
            )
        if cfg.keep_last_epochs > 0:
            self._keep(rf"checkpoint(\d+){suffix}\.pt", cfg.keep_last_epochs)
        if cfg.keep_best_checkpoints > 0:
            self._keep(
                self._best_pattern(), cfg.keep_best_checkpoints, smallest=not cfg.maximize_best_checkpoint_metric
            )

    def _keep(
        self, pattern: str, count: int, always: Callable[[float], bool] | None = None, smallest: bool = False
    ) -> None:
        """Remove all but the ``count`` files whose number in ``pattern`` is largest (or smallest)."""
        found = sorted(numbered(self.cfg.save_dir, pattern), reverse=not smallest)
        for number, path in found[count:]:
            if always is None or not always(number):
                os.remove(path)


def copy_if_there_is_memory(state: dict[str, Any]) -> dict[str, Any] | None:
    try:
        copied: dict[str, Any] = snapshot(state)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("no memory for a copy of the checkpoint: training waits until it is written")
        return None
    return copied


def numbered(folder: str, pattern: str) -> list[tuple[float, str]]:
    """(number, path) of every file in ``folder`` whose name matches ``pattern``, whose first group is the number."""
    found = []
    for name in os.listdir(folder):
        match = re.fullmatch(pattern, name)
        if match:
            found.append((float(match.group(1)), os.path.join(folder, name)))
    return found
