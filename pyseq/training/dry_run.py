"""``--dry-run``: what a run would take, found out by one update that is not kept."""

from __future__ import annotations

import logging
import time

import torch

from pyseq import utils
from pyseq.training.epochs import Epochs
from pyseq.training.memory import peak_text
from pyseq.training.trainer import Trainer

logger = logging.getLogger(__name__)


def dry_run(trainer: Trainer, epochs: Epochs) -> None:
    """Forward and backward of the largest batch; logs its shape, the time, the memory and the parameter count."""
    batches = epochs.iterator
    largest = max(range(len(batches.frozen_batches)), key=lambda i: cells(trainer, batches.frozen_batches[i]))
    indices = batches.frozen_batches[largest]
    sample = trainer.task.dataset(trainer.cfg.dataset.train_subset).collate_indices(indices)
    start = time.perf_counter()
    with trainer.update([sample]) as update:
        for batch in trainer.batches(update):
            loss, sample_size, log = trainer.task.train_step(
                batch, trainer.model, trainer.criterion, trainer.optimizer, trainer.num_updates
            )
            update.add(sample_size, log)
        trainer.average_and_clip_gradients(update)
    seconds = time.perf_counter() - start
    tokens = sample["net_input"].get("src_tokens")
    shape = tuple(tokens.shape) if torch.is_tensor(tokens) else "?"
    logger.info("dry run: %d batches an epoch; the largest has sources of shape %s, %s target tokens",
                len(batches), shape, sample.get("ntokens"))  # fmt: skip
    logger.info("dry run: loss %.3f, first forward and backward took %.2f s",
                utils.item(loss.detach() / sample_size), seconds)  # fmt: skip
    for line in memory_lines(trainer):
        logger.info("dry run: %s", line)


def cells(trainer: Trainer, indices: object) -> int:
    dataset = trainer.task.dataset(trainer.cfg.dataset.train_subset)
    lengths = dataset.num_tokens_vec(indices)
    return int(max(lengths, default=0)) * len(lengths)


def memory_lines(trainer: Trainer) -> list[str]:
    """Bytes of weights, gradients and optimizer state, and the peak where the device counts it."""
    parameters = utils.count_parameters(trainer.model.parameters())
    width = 2 if trainer.cfg.common.bf16 else 4
    master = 4 * parameters if trainer.cfg.common.bf16 else 0
    fixed = parameters * width + master + 4 * parameters + 8 * parameters
    lines = [
        f"{parameters:,} parameters; weights, gradients and (for Adam) moments take about {fixed / 2**30:.2f} GiB",
    ]
    lines.append(f"peak with activations of the largest batch, before the moments exist: {peak_text(trainer.device)}")
    return lines
