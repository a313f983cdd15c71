"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim import Optimizer, register_optimizer
from pyseq.optim.optimizer import learning_rates


@dataclass
class SGDConfig(ConfigGroup):
    momentum: float = field(default=0.0, metadata={"help": "momentum factor"})
    weight_decay: float = field(
        default=0.0, metadata={"help": "L2 penalty, added to the gradient", "argparse_alias": "--wd"}
    )
    lr: list[float] = II("optimization.lr")


@register_optimizer("sgd", dataclass=SGDConfig)
class SGD(Optimizer):
    """``--optimizer sgd``: :class:`torch.optim.SGD`. Only the first ``--lr`` is used.

    With g' = g + weight_decay p::

        b = momentum b + g'    (b = g' at the first step)
        p = p - lr b
    """

    def __init__(self, cfg: SGDConfig, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        for flag, value in (("--momentum", cfg.momentum), ("--weight-decay", cfg.weight_decay)):
            if value < 0:
                raise ConfigError(f"{flag} {value:g}: cannot be negative")
        self._optimizer = torch.optim.SGD(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "momentum": self.cfg.momentum,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_flat_params(self) -> bool:
        return True
