"""The base class of learning-rate schedules."""

from __future__ import annotations

from typing import Any

from pyseq.errors import ConfigError
from pyseq.optim.optimizer import Optimizer, learning_rates
from pyseq.registry import Optioned


class LRScheduler(Optioned):
    """Sets the learning rate of ``optimizer``, by update, by epoch, or both.

    The trainer calls :meth:`step_begin_epoch` as an epoch begins (epochs count from 1), :meth:`step_update` with 0
    before the first update and with n after update n, and :meth:`step` as an epoch ends. ``best`` is the lowest
    validation loss so far.

    Raises:
        ConfigError: ``optimizer`` is not an :class:`~pyseq.optim.Optimizer`.
    """

    def __init__(self, cfg: Any, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(f"optimizer must be an instance of pyseq.optim.Optimizer, not {type(optimizer).__name__}")
        self.cfg = cfg
        self.optimizer = optimizer
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict.get("best")

    def step_begin_epoch(self, epoch: int) -> Any:
        """Update the learning rate at the beginning of ``epoch``."""
        return self.optimizer.get_lr()

    def step(self, epoch: int, val_loss: float | None = None) -> Any:
        """Update the learning rate at the end of ``epoch``."""
        if val_loss is not None:
            self.best = val_loss if self.best is None else min(self.best, val_loss)
        return self.optimizer.get_lr()

    def step_update(self, num_updates: int) -> Any:
        """Set the learning rate of update ``num_updates`` + 1 and return it (or a dict of them by group name)."""
        return self.optimizer.get_lr()


def only_lr(cfg: Any, name: str) -> float:
    """``--lr`` for a schedule that takes a single one. Raises ConfigError if there are several."""
    rates = learning_rates(cfg)
    if len(rates) > 1:
        raise ConfigError(
            f"--lr {','.join(f'{rate:g}' for rate in rates)}: --lr-scheduler {name} takes a single learning rate. "
            "For one an epoch choose --lr-scheduler fixed."
        )
    return rates[0]


def check_not_negative(cfg: Any, *names: str) -> None:
    """Raise ConfigError if one of these options of ``cfg`` is negative."""
    for name in names:
        if getattr(cfg, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(cfg, name):g}: cannot be negative")
