"""The training loop."""

from __future__ import annotations

from pyseq.training.epochs import Epochs
from pyseq.training.monitor import Monitor
from pyseq.training.trainer import Trainer


def train(trainer: Trainer, epochs: Epochs, monitor: Monitor) -> None:
    """Train until a limit is reached.

    Args:
        trainer: the model with its optimizer and schedule.
        epochs: the training data, epoch by epoch, from where a checkpoint left off.
        monitor: logs, validates, saves, and says when to stop.

    Raises:
        TrainingError: the gradients of an update are not finite, or memory ran out.
    """
    task, model, criterion = trainer.task, trainer.model, trainer.criterion
    optimizer, lr_scheduler = trainer.optimizer, trainer.lr_scheduler

    for epoch in epochs:
        lr_scheduler.step_begin_epoch(epoch.number)
        lr_scheduler.step_update(trainer.num_updates)
        for micro_batches in monitor.watch(epoch):
            with trainer.update(micro_batches) as update:
                for batch in trainer.batches(update):
                    _, sample_size, log = task.train_step(batch, model, criterion, optimizer, trainer.num_updates)
                    update.add(sample_size, log)
                trainer.average_and_clip_gradients(update)
                task.optimizer_step(optimizer, model, trainer.num_updates)
                lr_scheduler.step_update(trainer.num_updates + 1)
            monitor.after_update(epoch)
        if monitor.should_stop:
            break
        lr_scheduler.step(epoch.number, monitor.valid_loss)
    trainer.check_gradients()
