"""A learning rate for each epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyseq.config import II, ConfigGroup
from pyseq.optim.lr_scheduler import LRScheduler, register_lr_scheduler
from pyseq.optim.lr_scheduler.lr_scheduler import check_not_negative
from pyseq.optim.optimizer import Optimizer, learning_rates


@dataclass
class FixedLRConfig(ConfigGroup):
    force_anneal: int | None = field(default=None, metadata={"help": "shrink the learning rate from this epoch on"})
    lr_shrink: float = field(default=0.1, metadata={"help": "factor by which annealing shrinks the learning rate"})
    warmup_updates: int = field(default=0, metadata={"help": "warm up linearly for the first N updates"})
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("fixed", dataclass=FixedLRConfig)
class FixedLR(LRScheduler):
    """Epoch e has ``lr[e - 1]``, or the last of the list when that is shorter.

    From epoch ``force_anneal`` on it is ``lr[-1] * lr_shrink^(e + 1 - force_anneal)``. While n < ``warmup_updates``,
    after n updates, it is multiplied by ``(n + 1) / warmup_updates``.
    """

    def __init__(self, cfg: FixedLRConfig, optimizer: Optimizer) -> None:
        super().__init__(cfg, optimizer)
        check_not_negative(cfg, "warmup_updates")
        self.rates = learning_rates(cfg)
        self.lr = self.rates[0]
        self.warmup_factor = 1.0 / cfg.warmup_updates if cfg.warmup_updates > 0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "lr": self.lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.lr = state_dict.get("lr", self.lr)

    def lr_of_epoch(self, epoch: int) -> float:
        """The learning rate of ``epoch`` (from 1) after any warm-up."""
        if self.cfg.force_anneal is None or epoch < self.cfg.force_anneal:
            return self.rates[min(epoch, len(self.rates)) - 1]
        return float(self.rates[-1] * self.cfg.lr_shrink ** (epoch + 1 - self.cfg.force_anneal))

    def step_begin_epoch(self, epoch: int) -> float:
        self.lr = self.lr_of_epoch(epoch)
        self.optimizer.set_lr(self.warmup_factor * self.lr)
        return self.optimizer.get_lr()

    def step_update(self, num_updates: int) -> float:
        warming_up = num_updates < self.cfg.warmup_updates
        self.warmup_factor = (num_updates + 1) / self.cfg.warmup_updates if warming_up else 1.0
        self.optimizer.set_lr(self.warmup_factor * self.lr)
        return self.optimizer.get_lr()
