"""From a checkpoint to a run that goes on, or to models for evaluation."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from pyseq import metrics
from pyseq.config.config import Config, config_from_args, config_from_dict
from pyseq.config.flags import literal_dict
from pyseq.errors import CheckpointError, ConfigError, nearest
from pyseq.tasks import setup_task
from pyseq.training.checkpoint_file import load_checkpoint_file
from pyseq.training.epochs import Epochs
from pyseq.training.saving import Saver
from pyseq.training.trainer import Trainer, optimizer_name

logger = logging.getLogger(__name__)


def restore(trainer: Trainer, epochs: Epochs, saver: Saver) -> None:
    """Bring a run to where its checkpoint left it, or start it afresh if there is none.

    ``checkpoint_last.pt`` in the save folder wins over --continue-once and --finetune-from-model, so that the command
    that started a run also resumes it.

    Raises:
        CheckpointError: a checkpoint that was asked for by name is missing, damaged or does not fit.
    """
    cfg = trainer.cfg.checkpoint
    path, weights_only = choose_checkpoint(trainer.cfg)
    if not os.path.isfile(path):
        if weights_only or cfg.continue_once or cfg.restore_file != "checkpoint_last.pt":
            load_checkpoint_file(path)  # raises with the neighbours' names
        logger.info("No existing checkpoint found %s", path)
        return
    state = load_checkpoint_file(path, cfg.unsafe_load)
    load_weights(trainer, state, path)
    if weights_only:
        logger.info("loaded weights from %s; optimizer, schedule, data position and metrics start afresh", path)
        return
    extra = state.get("extra_state") or {}
    if not cfg.reset_optimizer:
        load_optimizer(trainer, state, path)
    iterator_state = None if cfg.reset_dataloader else extra.get("train_iterator")
    if iterator_state:
        epochs.load_state_dict(iterator_state)
    if not cfg.reset_meters and "metrics" in extra:
        metrics.load_state_dict(extra["metrics"])
        for name in ("train", "train_inner"):
            metrics.reset_meters(name)
    trainer.previous_training_time = 0.0 if cfg.reset_meters else float(extra.get("previous_training_time", 0.0))
    if not (cfg.reset_optimizer or cfg.reset_meters):
        saver.load_state_dict(extra)
    if state.get("task_state"):
        trainer.task.load_state_dict(state["task_state"])
    trainer.lr_scheduler.step_begin_epoch(epochs.iterator.next_epoch_idx)
    trainer.lr_scheduler.step_update(trainer.num_updates)
    logger.info("Loaded checkpoint %s (epoch %d @ %d updates)", path, epochs.iterator.epoch, trainer.num_updates)


def choose_checkpoint(cfg: Config) -> tuple[str, bool]:
    """The path to start from, and whether only its weights are wanted."""
    checkpoint = cfg.checkpoint
    suffix = checkpoint.checkpoint_suffix
    last = os.path.join(checkpoint.save_dir, f"checkpoint_last{suffix}.pt")
    path = last
    if checkpoint.continue_once is not None and not os.path.exists(last):
        path = checkpoint.continue_once
    elif checkpoint.restore_file != "checkpoint_last.pt":
        path = checkpoint.restore_file.replace(".pt", suffix + ".pt")
        if not os.path.isabs(path) and not os.path.exists(path):
            path = os.path.join(checkpoint.save_dir, path)
    if checkpoint.finetune_from_model is not None:
        if checkpoint.restore_file != "checkpoint_last.pt":
            raise ConfigError("--finetune-from-model and --restore-file cannot both be given")
        if not os.path.exists(last):
            return checkpoint.finetune_from_model, True
    return path, False


def load_weights(trainer: Trainer, state: dict[str, Any], path: str) -> None:
    try:
        trainer.load_model_state(state)
    except (CheckpointError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path}: {error} To start afresh, give another --save-dir.") from None


def load_optimizer(trainer: Trainer, state: dict[str, Any], path: str) -> None:
    """Restore optimizer, schedule and update count; refuses the state of another criterion or optimizer."""
    history = state.get("optimizer_history") or []
    if not history:
        raise CheckpointError(f"{path} has no optimizer history: give --reset-optimizer, or --finetune-from-model")
    last = history[-1]
    names = {"criterion": type(trainer.criterion).__name__, "optimizer": optimizer_name(trainer.optimizer)}
    for kind, here in names.items():
        there = last.get(f"{kind}_name")
        if there not in (None, here):
            raise CheckpointError(
                f"{path} was trained with the {kind} {there}, this run uses {here}: give --reset-optimizer to go on "
                "all the same"
            )
    if not trainer.cfg.checkpoint.reset_lr_scheduler:
        trainer.lr_scheduler.load_state_dict(last.get("lr_scheduler_state") or {})
    optimizer_state = state.get("last_optimizer_state")
    if optimizer_state is None:
        raise CheckpointError(f"{path} was saved without optimizer state: give --reset-optimizer")
    overrides = literal_dict(trainer.cfg.checkpoint.optimizer_overrides)
    try:
        trainer.optimizer.load_state_dict(optimizer_state, overrides)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the optimizer state in {path} does not fit: {error}. Give --reset-optimizer.") from None
    trainer.set_num_updates(last["num_updates"])


def config_of(state: dict[str, Any], path: str) -> Config:
    """The options a checkpoint was trained with."""
    if state.get("cfg") is not None:
        return config_from_dict(state["cfg"])
    if isinstance(state.get("args"), argparse.Namespace):
        return config_from_args(state["args"])
    raise CheckpointError(f"{path} does not say how its model was built (neither 'cfg' nor 'args')")


def override(cfg: Config, overrides: dict[str, Any]) -> None:
    """Set options wherever they occur in ``cfg``. Raises ConfigError for one that occurs nowhere."""
    nodes = [node for node in vars(cfg).values() if hasattr(node, "__dict__")]
    for key, value in overrides.items():
        holders = [node for node in nodes if hasattr(node, key)]
        if not holders:
            known = {name for node in nodes for name in vars(node)}
            raise ConfigError(f"--model-overrides: the model has no option '{key}'. {nearest(key, known)}")
        for node in holders:
            setattr(node, key, value)


def load_model_ensemble(
    paths: list[str],
    task: Any = None,
    arg_overrides: dict[str, Any] | None = None,
    suffix: str = "",
    strict: bool = True,
    unsafe: bool = False,
) -> tuple[list[Any], Config]:
    """Build and load one model a path. Returns the models and the options of the first."""
    models, cfg, _ = load_model_ensemble_and_task(paths, arg_overrides, task, strict, suffix, unsafe)
    return models, cfg


def load_model_ensemble_and_task(
    paths: list[str],
    arg_overrides: dict[str, Any] | None = None,
    task: Any = None,
    strict: bool = True,
    suffix: str = "",
    unsafe: bool = False,
) -> tuple[list[Any], Config, Any]:
    """Build and load one model a path, on the CPU.

    Args:
        paths: checkpoint files.
        arg_overrides: options to change, of the model or of the task.
        task: the task to build the models for; by default the one the first checkpoint was trained on.

    Returns:
        The models, the options of the first checkpoint, the task.

    Raises:
        CheckpointError: a file is missing or damaged, or its weights do not fit the task's dictionaries.
    """
    models: list[Any] = []
    configs: list[Config] = []
    for path in paths:
        if suffix:
            path = path.replace(".pt", f"{suffix}.pt")
        state = load_checkpoint_file(path, unsafe)
        cfg = config_of(state, path)
        override(cfg, arg_overrides or {})
        if task is None:
            task = setup_task(cfg.task)
        model = task.build_model(cfg.model)
        try:
            model.load_state_dict(state["model"], strict=strict, model_cfg=cfg.model)
        except (CheckpointError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        models.append(model)
        configs.append(cfg)
    return models, configs[0], task
