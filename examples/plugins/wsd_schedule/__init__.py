"""A learning-rate schedule as a plug-in: pyseq-train ... --user-dir wsd_schedule --lr-scheduler wsd --max-update N"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim import Optimizer
from pyseq.optim.lr_scheduler import LRScheduler, register_lr_scheduler


@dataclass
class WSDConfig(ConfigGroup):
    warmup_updates: int = field(default=500, metadata={"help": "warm up linearly for the first N updates"})
    cooldown_updates: int = field(default=1000, metadata={"help": "decay linearly to zero over the last N updates"})
    lr: list[float] = II("optimization.lr")
    max_update: int = II("optimization.max_update")


@register_lr_scheduler("wsd", dataclass=WSDConfig)
class WarmupStableDecay(LRScheduler):
    """Warm up, stay, cool down (Hu et al., 2024, https://arxiv.org/abs/2404.06395).

    A run can be prolonged from a checkpoint before the cool-down, because nothing earlier depends on ``--max-update``.
    """

    cfg: WSDConfig

    def __init__(self, cfg: WSDConfig, optimizer: Optimizer) -> None:
        super().__init__(cfg, optimizer)
        if len(cfg.lr) != 1:
            raise ConfigError("--lr-scheduler wsd takes a single --lr")
        if not 0 < cfg.warmup_updates + cfg.cooldown_updates <= cfg.max_update:
            raise ConfigError(
                f"--lr-scheduler wsd: --warmup-updates ({cfg.warmup_updates}) and --cooldown-updates "
                f"({cfg.cooldown_updates}) must fit into --max-update, which is {cfg.max_update or 'not given'}"
            )
        self.step_update(0)

    def step_update(self, num_updates: int) -> float:
        """Set and return the learning rate of update ``num_updates`` + 1."""
        cfg = self.cfg
        warmup = (num_updates + 1) / cfg.warmup_updates if cfg.warmup_updates else 1.0
        cooldown = (cfg.max_update - num_updates) / cfg.cooldown_updates if cfg.cooldown_updates else 1.0
        lr = cfg.lr[0] * max(0.0, min(1.0, warmup, cooldown))
        self.optimizer.set_lr(lr)
        return lr
