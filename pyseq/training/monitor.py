"""What happens around the updates: logging, validation, saving, and the decision to stop."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from pyseq import metrics
from pyseq.config.config import Config
from pyseq.training import distributed
from pyseq.training.epochs import Epoch, Epochs
from pyseq.training.memory import peak_bytes
from pyseq.training.profile import Profile
from pyseq.training.progress import MetricsFile, Progress, progress_bar
from pyseq.training.saving import Saved, Saver
from pyseq.training.trainer import Trainer
from pyseq.training.validation import validate

logger = logging.getLogger(__name__)


class Monitor:
    """Watches a run. After each update it logs, validates and saves where the options say so.

    Attributes:
        should_stop: a limit was reached, patience ran out, or the process was asked to stop.
        valid_loss: the first subset's value of --best-checkpoint-metric at the last validation.
    """

    def __init__(self, trainer: Trainer, epochs: Epochs, saver: Saver) -> None:
        self.trainer, self.epochs, self.saver = trainer, epochs, saver
        self.cfg: Config = trainer.cfg
        self.should_stop = False
        self.valid_loss: float | None = None
        self.signal: int | None = None
        self.subsets = self.cfg.dataset.valid_subset.split(",")
        self.metrics_file = MetricsFile(os.path.join(self.cfg.checkpoint.save_dir, "metrics.jsonl"))
        self.write_metrics = distributed.is_master() and not self.cfg.checkpoint.no_save
        self._first_update: tuple[float, int] | None = None
        self._saved: list[Saved] = []  # checkpoints that no record has told of
        self.profile: Profile | None = None
        if self.cfg.common.profile and distributed.is_master():
            self.profile = Profile(trainer, self.cfg.checkpoint.save_dir, self.cfg.common.profile_updates)

    # Iteration and logging.

    def watch(self, epoch: Epoch) -> Iterator[list[Any]]:
        """Iterate over the epoch's updates with a progress report, and report the epoch when it is through."""
        if distributed.is_master():
            logger.info("begin training epoch %d", epoch.number)
        self.progress = self._progress(epoch)
        self.trainer.task.begin_epoch(epoch.number, self.trainer.model)
        with metrics.aggregate("train"):
            logger.info("Start iterating over samples")
            waited = time.perf_counter()
            for micro_batches in self.progress:
                with metrics.aggregate("train_inner"):
                    metrics.log_scalar("_wait", time.perf_counter() - waited)
                    metrics.log_derived("data_wait", data_wait_percent, priority=830)
                    yield micro_batches
                if self.should_stop:
                    break
                waited = time.perf_counter()
        if self.should_stop:
            self.saver.wait()
            self._report_saved()
        logger.info("end of epoch %d (average epoch stats below)", epoch.number)
        stats = self.training_stats(metrics.get_smoothed_values("train"))
        self.progress.print(stats, tag="train", step=self.trainer.num_updates)
        self._record("train", epoch.number, stats)
        metrics.reset_meters("train")

    def _progress(self, epoch: Epoch) -> Progress:
        common = self.cfg.common
        return progress_bar(
            epoch.updates,
            log_format=common.log_format if distributed.is_master() else "none",
            log_file=common.log_file,
            log_interval=common.log_interval,
            epoch=epoch.number,
            tensorboard_logdir=common.tensorboard_logdir if distributed.is_master() else None,
            default_log_format="simple" if common.no_progress_bar else "tqdm",
        )

    def training_stats(self, stats: dict[str, Any]) -> dict[str, Any]:
        stats["wall"] = round(self.trainer.training_time())
        remaining = self.seconds_left()
        if remaining is not None:
            stats["eta"] = round(remaining)
        return stats

    def seconds_left(self) -> float | None:
        """Time until --max-update or --max-epoch at the speed so far (validation and saving included)."""
        updates = self.trainer.num_updates
        if self._first_update is None:
            self._first_update = (time.perf_counter(), updates)
        start, first = self._first_update
        limits = [self.cfg.optimization.max_update] if self.cfg.optimization.max_update else []
        if self.cfg.optimization.max_epoch and self.progress.size:
            per_epoch = self.progress.size
            left = (self.cfg.optimization.max_epoch - (self.progress.epoch or 1) + 1) * per_epoch - self.progress.i - 1
            limits.append(updates + max(left, 0))
        if not limits or updates <= first:
            return None
        return max(0.0, (min(limits) - updates) * (time.perf_counter() - start) / (updates - first))

    def after_update(self, epoch: Epoch) -> None:
        """Log, validate, save, and decide whether to go on."""
        if self.profile is not None:
            self.profile.end_update(epoch)
        updates = self.trainer.num_updates
        if self.cfg.common.log_interval > 0 and updates % self.cfg.common.log_interval == 0:
            stats = self.training_stats(metrics.get_smoothed_values("train_inner"))
            self.progress.log(stats, tag="train_inner", step=updates)
            self._record("train_inner", epoch.number, stats)
            metrics.reset_meters("train_inner")
            if self.trainer.reading_waits:
                self.trainer.check_gradients()  # the log has just waited for the device
        elif self._first_update is None:
            self._first_update = (time.perf_counter(), updates)
        self.validate_and_save(epoch)
        self._report_saved()
        if self.profile is not None:
            self.profile.begin_update(epoch)

    def _report_saved(self) -> None:
        for saved in self.saver.finished():
            saved.tell()
            self._saved.append(saved)

    def _record(self, tag: str, epoch: int, stats: dict[str, Any]) -> None:
        """Into metrics.jsonl. ``peak_gb``: GiB, see :func:`~pyseq.training.memory.peak_bytes`.

        ``save_stall`` and ``save_seconds``: how long training waited for the checkpoints finished since the last such
        record, and how long they took.
        """
        if self.write_metrics:
            if tag.startswith("train"):
                stats = {**stats, "peak_gb": round(peak_bytes(self.trainer.device) / 2**30, 3)}
                if self._saved:
                    stats["save_stall"] = round(sum(saved.stall for saved in self._saved), 4)
                    stats["save_seconds"] = round(sum(saved.seconds for saved in self._saved), 4)
                    self._saved.clear()
            self.metrics_file.write(tag, epoch, self.trainer.num_updates, stats)

    # Validation, saving, stopping.

    def validate_and_save(self, epoch: Epoch) -> None:
        updates, end_of_epoch = self.trainer.num_updates, epoch.at_end()
        self.should_stop = self.limit_reached(end_of_epoch)
        save = self._save_is_due(end_of_epoch, epoch.number)
        self.valid_loss = None
        if self.signal is None and self._validation_is_due(end_of_epoch, epoch.number, save):
            self.valid_loss = self._validate(epoch.number)
            if self.saver.out_of_patience(self.valid_loss):
                logger.info(
                    "early stop since valid performance hasn't improved for last %d runs", self.cfg.checkpoint.patience
                )
                self.should_stop = True
        if save or self.should_stop:
            self.saver.save(self.trainer, self.epochs, self.valid_loss, end_of_epoch)
        if self.signal is not None:
            logger.info("stopped by signal %d at update %d; run the same command to resume", self.signal, updates)

    def limit_reached(self, end_of_epoch: bool) -> bool:
        """Whether updates, hours or learning rate are at their limit, or a signal came; logs which."""
        optimization, hours = self.cfg.optimization, self.trainer.training_time() / 3600
        if optimization.max_update and self.trainer.num_updates >= optimization.max_update:
            logger.info("Stopping training due to num_updates: %d >= max_update: %d",
                        self.trainer.num_updates, optimization.max_update)  # fmt: skip
            return True
        if 0 < optimization.stop_time_hours < hours:
            logger.info("Stopping training due to time: %.3f hours > stop_time_hours: %g",
                        hours, optimization.stop_time_hours)  # fmt: skip
            return True
        if end_of_epoch and self.trainer.optimizer.get_lr() <= optimization.stop_min_lr:
            logger.info("Stopping training because the learning rate fell to --stop-min-lr")
            return True
        return self.signal is not None

    def _save_is_due(self, end_of_epoch: bool, epoch: int) -> bool:
        checkpoint, updates = self.cfg.checkpoint, self.trainer.num_updates
        by_epoch = end_of_epoch and epoch % checkpoint.save_interval == 0
        every = checkpoint.save_interval_updates
        by_update = every > 0 and updates % every == 0 and updates >= self.cfg.dataset.validate_after_updates
        return by_epoch or self.should_stop or by_update

    def _validation_is_due(self, end_of_epoch: bool, epoch: int, save: bool) -> bool:
        dataset, updates = self.cfg.dataset, self.trainer.num_updates
        every = dataset.validate_interval_updates
        due = (
            (not end_of_epoch and save)
            or (end_of_epoch and epoch % dataset.validate_interval == 0)
            or self.should_stop
            or (every > 0 and updates % every == 0)
        )
        return due and not dataset.disable_validation and updates >= dataset.validate_after_updates

    def _validate(self, epoch: int) -> float | None:
        """Validate on every subset; returns the first one's best-checkpoint metric."""
        losses = []
        metric = self.cfg.checkpoint.best_checkpoint_metric
        for subset in self.subsets:
            logger.info('begin validation on "%s" subset', subset)
            stats = validate(self.trainer, subset, epoch)
            stats["num_updates"] = self.trainer.num_updates
            losses.append(self.saver.metric_of(stats, subset))
            best = self.saver.best_with(losses[0])
            if best is not None and subset == self.subsets[0]:
                stats[f"best_{metric}"] = best
            self._print_validation(epoch, subset, stats)
        return losses[0]

    def _print_validation(self, epoch: int, subset: str, stats: dict[str, Any]) -> None:
        report = progress_bar(
            (),
            log_format=self.cfg.common.log_format if distributed.is_master() else "none",
            epoch=epoch,
            prefix=f"valid on '{subset}' subset",
            tensorboard_logdir=self.cfg.common.tensorboard_logdir if distributed.is_master() else None,
            default_log_format="simple" if self.cfg.common.no_progress_bar else "tqdm",
        )
        report.print(stats, tag=subset, step=self.trainer.num_updates)
        self._record(subset, epoch, stats)

    # Signals.

    def __enter__(self) -> Monitor:
        """From here on SIGTERM, or Ctrl-C once, finishes the update, saves and stops; Ctrl-C twice stops at once."""
        self._previous = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            self.saver.close(raising=kind is not None)
            self._report_saved()
            if self.profile is not None:
                self.profile.close()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self.metrics_file.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


def data_wait_percent(meters: metrics.MetersDict) -> float:
    """The share of the time that went into waiting for the next batch."""
    wait, work = meters["_wait"].sum, meters["train_wall"].sum  # type: ignore[attr-defined]
    return round(100 * wait / max(wait + work, 1e-9), 1)
