"""Learning-rate schedules."""

from __future__ import annotations

from typing import Any

from pyseq.optim.lr_scheduler.lr_scheduler import LRScheduler
from pyseq.optim.optimizer import Optimizer
from pyseq.registry import Registry, import_siblings

__all__ = ["LR_SCHEDULERS", "LRScheduler", "build_lr_scheduler", "register_lr_scheduler"]

LR_SCHEDULERS = Registry("lr_scheduler", LRScheduler, default="fixed")
register_lr_scheduler = LR_SCHEDULERS.register


def build_lr_scheduler(cfg: Any, optimizer: Optimizer) -> LRScheduler:
    """The schedule that ``cfg`` chooses (its config, its name, or a flat namespace), driving ``optimizer``.

    Raises:
        ConfigError: an unknown schedule, or settings that it cannot work with.
    """
    scheduler: LRScheduler = LR_SCHEDULERS.build(cfg, optimizer)
    return scheduler


import_siblings(__file__, __name__)
