"""Linear warm-up, then polynomial decay to an end value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim.lr_scheduler import LRScheduler, register_lr_scheduler
from pyseq.optim.lr_scheduler.lr_scheduler import check_not_negative
from pyseq.optim.optimizer import Optimizer, learning_rates


@dataclass
class PolynomialDecayConfig(ConfigGroup):
    warmup_updates: int = field(default=0, metadata={"help": "warm up linearly for the first N updates"})
    force_anneal: int | None = field(
        default=None, metadata={"help": "take no new learning rate from a list of them from this epoch on"}
    )
    end_learning_rate: float = field(default=0.0, metadata={"help": "learning rate after --total-num-update updates"})
    power: float = field(default=1.0, metadata={"help": "exponent of the decay (1: linear)"})
    total_num_update: float | None = field(
        default=II("optimization.max_update"),
        metadata={"help": "updates until the end value is reached; default: --max-update"},
    )
    lr: list[float] = II("optimization.lr")


@register_lr_scheduler("polynomial_decay", dataclass=PolynomialDecayConfig)
class PolynomialDecay(LRScheduler):
    """With L the epoch's rate, W, T and E the warm-up, total number of updates and end value, after n updates::

        n <= W:  L n / W                    (if W > 0)
        n >= T:  E
        else:    (L - E) (1 - (n - W) / (T - W))^power + E

    In epoch e, from 1, L is ``lr[e]``, or the last of the list when that is shorter: of several rates the first
    serves only before the first epoch begins. (This is fairseq's indexing; ``fixed`` takes ``lr[e - 1]``.)
    From epoch ``force_anneal`` on, L is what the learning rate was when the epoch began.
    """

    def __init__(self, cfg: PolynomialDecayConfig, optimizer: Optimizer) -> None:
        super().__init__(cfg, optimizer)
        check_not_negative(cfg, "warmup_updates", "end_learning_rate")
        if not cfg.total_num_update or cfg.total_num_update < 0:
            raise ConfigError(
                "--lr-scheduler polynomial_decay needs to know its length: give --total-num-update (or --max-update)"
            )
        self.total: float = cfg.total_num_update
        self.rates = learning_rates(cfg)
        self.lr = self.rates[0]
        self.epoch = 0
        self.warmup_factor = 1.0 / cfg.warmup_updates if cfg.warmup_updates > 0 else 1.0
        self.optimizer.set_lr(self.warmup_factor * self.lr)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "lr": self.lr, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.lr, self.epoch = state_dict.get("lr", self.lr), state_dict.get("epoch", self.epoch)

    def lr_of_epoch(self, epoch: int) -> float:
        """The learning rate that the decay starts from in ``epoch`` (from 1)."""
        if self.cfg.force_anneal is None or epoch < self.cfg.force_anneal:
            return self.rates[min(epoch, len(self.rates) - 1)]
        # A run that resumes in mid-epoch begins the epoch again: it has to start from the same value.
        return self.lr if epoch == self.epoch else self.optimizer.get_lr()

    def step_begin_epoch(self, epoch: int) -> float:
        self.lr, self.epoch = self.lr_of_epoch(epoch), epoch
        self.optimizer.set_lr(self.warmup_factor * self.lr)
        return self.optimizer.get_lr()

    def step_update(self, num_updates: int) -> float:
        warmup, end = self.cfg.warmup_updates, self.cfg.end_learning_rate
        if 0 < warmup >= num_updates:
            self.warmup_factor = num_updates / warmup
            lr = self.warmup_factor * self.lr
        elif num_updates >= self.total:
            lr = end
        else:
            remaining = 1 - (num_updates - warmup) / (self.total - warmup)
            lr = (self.lr - end) * remaining**self.cfg.power + end
        self.optimizer.set_lr(lr)
        return lr
