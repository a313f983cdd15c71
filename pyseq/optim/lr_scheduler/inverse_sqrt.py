"""Linear warm-up, then decay with the inverse square root of the number of updates."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim.lr_scheduler import LRScheduler, register_lr_scheduler
from pyseq.optim.lr_scheduler.lr_scheduler import only_lr
from pyseq.optim.optimizer import Optimizer


@dataclass
class InverseSqrtConfig(ConfigGroup):
    warmup_updates: int = field(default=4000, metadata={"help": "warm up linearly for the first N updates"})
    warmup_init_lr: float = field(default=-1.0, metadata={"help": "learning rate warm-up begins at (below 0: at 0)"})
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("inverse_sqrt", dataclass=InverseSqrtConfig)
class InverseSqrt(LRScheduler):
    """The schedule of Vaswani et al. (2017, equation 3), up to scale.

    With L = ``lr`` and W = ``warmup_updates``, after n updates::

        n < W:   warmup_init_lr + n (L - warmup_init_lr) / W
        else:    L sqrt(W) / sqrt(n)
    """

    def __init__(self, cfg: InverseSqrtConfig, optimizer: Optimizer) -> None:
        super().__init__(cfg, optimizer)
        if cfg.warmup_updates < 1:
            raise ConfigError(
                f"--warmup-updates {cfg.warmup_updates}: inverse_sqrt needs at least 1, "
                "because the learning rate falls from --lr as sqrt(warmup-updates / updates)"
            )
        peak = only_lr(cfg, "inverse_sqrt")
        self.initial = cfg.warmup_init_lr if cfg.warmup_init_lr >= 0 else 0.0
        self.slope = (peak - self.initial) / cfg.warmup_updates
        self.decay_factor = peak * cfg.warmup_updates**0.5
        self.optimizer.set_lr(self.initial)

    def step_update(self, num_updates: int) -> float:
        if num_updates < self.cfg.warmup_updates:
            lr = self.initial + num_updates * self.slope
        else:
            lr = self.decay_factor * num_updates**-0.5
        self.optimizer.set_lr(lr)
        return lr
