"""Linear warm-up, then cosine decay, restarted at the end of each period."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim.lr_scheduler import LRScheduler, register_lr_scheduler
from pyseq.optim.lr_scheduler.lr_scheduler import check_not_negative, only_lr
from pyseq.optim.optimizer import Optimizer


@dataclass
class CosineConfig(ConfigGroup):
    warmup_updates: int = field(default=0, metadata={"help": "warm up linearly for the first N updates"})
    warmup_init_lr: float = field(
        default=-1.0, metadata={"help": "learning rate warm-up begins at (below 0: at --min-lr)"}
    )
    lr: list[float] = II("optimization.lr")
    min_lr: float = field(default=0.0, metadata={"help": "learning rate at the end of a period; below --lr"})
    t_mult: float = field(default=1.0, metadata={"help": "factor by which each period is longer than the one before"})
    lr_period_updates: float = field(
        default=-1.0, metadata={"help": "updates in the first period (0 or less: from warm-up to --max-update)"}
    )
    lr_shrink: float = field(default=0.1, metadata={"help": "factor by which each period is lower than the one before"})
    max_update: int = II("optimization.max_update")


@register_lr_scheduler("cosine", dataclass=CosineConfig)
class Cosine(LRScheduler):
    """SGDR (Loshchilov and Hutter, 2017). After n updates, with u = n - ``warmup_updates``:

    During warm-up (u < 0) the rate grows linearly from ``warmup_init_lr`` to ``lr``. Then period i, of length
    ``T_i = lr_period_updates * t_mult^i``, with t updates gone in it, has::

        lr_shrink^i (min_lr + (lr - min_lr) / 2 (1 + cos(pi t / T_i)))
    """

    def __init__(self, cfg: CosineConfig, optimizer: Optimizer) -> None:
        super().__init__(cfg, optimizer)
        check_not_negative(cfg, "warmup_updates", "min_lr")
        self.max_lr = only_lr(cfg, "cosine")
        if self.max_lr <= cfg.min_lr:
            raise ConfigError(f"--min-lr {cfg.min_lr:g} must be below --lr {self.max_lr:g}")
        if cfg.t_mult <= 0:
            raise ConfigError(f"--t-mult {cfg.t_mult:g} must be positive")
        self.period = first_period(cfg)
        self.initial = cfg.warmup_init_lr if cfg.warmup_init_lr >= 0 else cfg.min_lr
        self.slope = (self.max_lr - self.initial) / max(cfg.warmup_updates, 1)
        self.optimizer.set_lr(self.initial)

    def step_update(self, num_updates: int) -> float:
        updates = num_updates - self.cfg.warmup_updates
        if updates < 0:
            lr = self.initial + num_updates * self.slope
        else:
            index, position = self.find_period(updates)
            shrink = self.cfg.lr_shrink**index
            low, high = shrink * self.cfg.min_lr, shrink * self.max_lr
            lr = low + 0.5 * (high - low) * (1 + math.cos(math.pi * position))
        self.optimizer.set_lr(lr)
        return lr

    def find_period(self, updates: int) -> tuple[int, float]:
        """The index of the period that ``updates`` (after warm-up) is in, and how much of it is over, in [0, 1]."""
        length = self.period
        if self.cfg.t_mult == 1:
            index = math.floor(updates / length)
            return index, (updates - length * index) / length
        index, gone = 0, float(updates)
        # Shrinking periods (t_mult < 1) add up to a finite length: beyond it the schedule stays where it ended.
        while gone >= length >= 1:
            index, gone, length = index + 1, gone - length, length * self.cfg.t_mult
        return index, min(gone / length, 1.0)


def first_period(cfg: CosineConfig) -> float:
    """The length of the first period, in updates. Raises ConfigError if nothing says it."""
    if cfg.lr_period_updates > 0:
        return cfg.lr_period_updates
    period = (cfg.max_update or 0) - cfg.warmup_updates
    if period <= 0:
        raise ConfigError(
            "--lr-scheduler cosine needs to know its period: give --lr-period-updates, or a --max-update above "
            f"--warmup-updates (--max-update is {cfg.max_update or 0}, --warmup-updates {cfg.warmup_updates})"
        )
    return float(period)
