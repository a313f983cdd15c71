"""``pyseq-train``: train a model.

pyseq-train DATA --arch transformer --optimizer adam --lr 5e-4 --lr-scheduler inverse_sqrt --max-tokens 4096
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import torch

from pyseq import metrics, utils
from pyseq.cli.compiling import ADVICE, compile_for_training, has_compiler
from pyseq.cli.options import read_options
from pyseq.cli.run import EXIT_SIGNAL, run
from pyseq.config.config import Config
from pyseq.config.parser import get_training_parser
from pyseq.data.data_utils import check_unlisted_valid_subsets
from pyseq.errors import ConfigError
from pyseq.models.model import BaseModel
from pyseq.tasks import setup_task
from pyseq.training import distributed
from pyseq.training.allocator import keep_freed_memory
from pyseq.training.auto_budget import settle_budget
from pyseq.training.checkpoint import restore
from pyseq.training.dry_run import dry_run
from pyseq.training.epochs import Epochs
from pyseq.training.loop import train
from pyseq.training.memory import peak_text
from pyseq.training.monitor import Monitor
from pyseq.training.saving import Saver
from pyseq.training.trainer import Trainer

logger = logging.getLogger("pyseq.train")


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``pyseq-train`` with ``argv`` (default: the process's own arguments).

    Raises:
        UserError: something in the options, the data or a checkpoint is wrong.
        SystemExit: after saving, if the process was asked to stop by a signal (code 128 + its number).
    """
    options = read_options(get_training_parser, argv)
    if options is None:
        return
    cfg, args = options
    check(cfg)
    keep_freed_memory()
    try:
        settle_budget(cfg, build)
        trainer = build(cfg)
        if distributed.is_master():
            tell(cfg, trainer)
        if args.dry_run:
            dry_run(trainer, Epochs(cfg, trainer.task, trainer.model))
            return
        stopped_by = run_training(trainer)
    finally:
        distributed.shutdown()
    if stopped_by is not None:
        sys.exit(EXIT_SIGNAL + stopped_by)


def check(cfg: Config) -> None:
    """Raise ConfigError for options that cannot work, all of them at once, before anything is loaded."""
    problems = []
    if cfg.model is None:
        problems.append("--arch is required")
    if cfg.optimizer is None:
        problems.append("--optimizer is required")
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        problems.append("give the size of a batch: --max-tokens or --batch-size")
    if min(cfg.optimization.update_freq, default=0) < 1:
        problems.append("--update-freq must be at least 1")
    if not cfg.optimization.lr:
        problems.append("--lr is empty")
    if cfg.common.compile and cfg.dataset.packed:
        problems.append("--packed leaves out padding, which a model under --compile computes: use one of them")
    if cfg.common.compile and not has_compiler():
        problems.append(ADVICE)
    if cfg.common.cuda_graphs and (cfg.common.cpu or not torch.cuda.is_available()):
        problems.append(f"--cuda-graphs needs a GPU, and {'there is --cpu' if cfg.common.cpu else 'there is none'}")
    if problems:
        raise ConfigError("; ".join(problems))
    if not cfg.checkpoint.no_save:
        verify_folder(cfg.checkpoint.save_dir)


def verify_folder(folder: str) -> None:
    """Make the save folder and see that it can be written, now rather than after an epoch."""
    probe = os.path.join(folder, f".write_test_{os.getpid()}")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(probe, "w"):
            pass
        os.remove(probe)
    except OSError as error:
        raise ConfigError(f"--save-dir {folder} cannot be written: {error.strerror}") from None


def build(cfg: Config) -> Trainer:
    """Task, model, criterion and trainer, from the seed."""
    metrics.reset()
    utils.set_all_seeds(cfg.common.seed)
    task = setup_task(cfg.task)
    model = task.build_model(cfg.model)
    if cfg.dataset.packed:
        pack(model)
    if cfg.common.compile:
        compile_for_training(model)
    criterion = task.build_criterion(cfg.criterion)
    if not cfg.dataset.disable_validation:
        if not (cfg.dataset.combine_valid_subsets or cfg.dataset.ignore_unused_valid_subsets):
            check_unlisted_valid_subsets(getattr(cfg.task, "data", None) or "", cfg.dataset.valid_subset)
        for subset in cfg.dataset.valid_subset.split(","):
            task.load_dataset(subset, combine=bool(cfg.dataset.combine_valid_subsets), epoch=1)
    return Trainer(cfg, task, model, criterion)


def pack(model: BaseModel) -> None:
    """Have the model compute without padding. Raises ConfigError for one that cannot: its batches would not fit."""
    if not model.can_pack():
        raise ConfigError(
            f"--packed counts real tokens, but the model {type(model).__name__} computes padding, too: its batches "
            "could be many times as large as --max-tokens says. Leave --packed out."
        )
    model.pack_sequences = True


def tell(cfg: Config, trainer: Trainer) -> None:
    """The start of the log: what runs, on what, and why."""
    model = trainer.model
    total = utils.count_parameters(model.parameters())
    trained = utils.count_parameters(p for p in model.parameters() if p.requires_grad)
    logger.info("task: %s", type(trainer.task).__name__)
    logger.info("model: %s (%s)", type(model).__name__, getattr(cfg.model, "_name", None))
    logger.info("criterion: %s", type(trainer.criterion).__name__)
    logger.info("num. shared model params: %s (num. trained: %s)", f"{total:,}", f"{trained:,}")
    if trainer.use_cuda:
        device = f"{trainer.device} ({torch.cuda.get_device_name(trainer.device)})"
    else:
        why = "--cpu" if cfg.common.cpu else "no CUDA device was found"
        device = f"cpu, {torch.get_num_threads()} threads ({why})"
    logger.info("device: %s; %d process(es)", device, distributed.world_size())
    if cfg.common.compile:
        logger.info("compile: the first batch, and the first of a validation, may take minutes")
    logger.info("dtype: %s (%s)", str(trainer.precision.dtype).removeprefix("torch."), trainer.precision.reason)
    frequency = cfg.optimization.update_freq[0] * distributed.world_size()
    tokens = "real tokens" if cfg.dataset.packed else "padded tokens"
    budgets = {tokens: cfg.dataset.max_tokens, "sentences": cfg.dataset.batch_size}
    limits = [f"{budget} {unit}" for unit, budget in budgets.items() if budget]
    logger.info("an update: %d batch(es) of up to %s", frequency, " and ".join(limits))


def run_training(trainer: Trainer) -> int | None:
    """Resume or begin, train, and return the signal that stopped the run (None if a limit did)."""
    cfg = trainer.cfg
    epochs, saver = Epochs(cfg, trainer.task, trainer.model), Saver(cfg.checkpoint)
    metrics.log_start_time("wall", priority=790, round=0)
    restore(trainer, epochs, saver)
    with Monitor(trainer, epochs, saver) as monitor:
        if not monitor.limit_reached(end_of_epoch=False):  # a run that is over is not taken further
            train(trainer, epochs, monitor)
    logger.info("peak memory: %s", peak_text(trainer.device))
    logger.info("done training in %.1f seconds", trainer.training_time())
    return monitor.signal


def cli_main() -> None:
    run(main)


if __name__ == "__main__":
    cli_main()
