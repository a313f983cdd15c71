"""Nesterov's accelerated gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim import Optimizer, register_optimizer
from pyseq.optim.in_fp32 import in_fp32, to_update, zeros
from pyseq.optim.not_compiled import TorchOptimizer
from pyseq.optim.optimizer import learning_rates


@dataclass
class NAGConfig(ConfigGroup):
    momentum: float = field(default=0.99, metadata={"help": "momentum factor"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay"})
    lr: list[float] = II("optimization.lr")


@register_optimizer("nag", dataclass=NAGConfig)
class NAG(Optimizer):
    """``--optimizer nag``. Only the first ``--lr`` is used; later ones are for the schedule."""

    checkpoint_name = "FairseqNAG"  # what the checkpoint format calls it

    def __init__(self, cfg: NAGConfig, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        for flag, value in (("--momentum", cfg.momentum), ("--weight-decay", cfg.weight_decay)):
            if not value >= 0:
                raise ConfigError(f"{flag} {value:g}: cannot be negative")
        self._optimizer = Nesterov(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "momentum": self.cfg.momentum,
            "weight_decay": self.cfg.weight_decay,
        }


class Nesterov(TorchOptimizer):
    """Nesterov's accelerated gradient (Sutskever et al., 2013), the velocity b in units of the parameter.

    With gradient g, momentum mu, and c = lr / (lr of the step before)::

        p = p - lr weight_decay p
        p = p + mu^2 c b - (1 + mu) lr g
        b = mu c b - lr g

    State of a parameter: ``momentum_buffer``; of a group, besides its settings: ``lr_old``.
    """

    supports_memory_efficient_fp16 = True
    supports_flat_params = True

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "lr_old": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            momentum, lr = group["momentum"], group["lr"]
            lr_old = group.get("lr_old", lr)
            correction = lr / lr_old if lr_old > 0 else lr
            for params in to_update(group["params"], "nag"):
                for param in params:
                    if "momentum_buffer" not in self.state[param]:
                        self.state[param]["momentum_buffer"] = zeros(param)
                buffers = [self.state[param]["momentum_buffer"] for param in params]
                with in_fp32(params) as (values, grads):
                    if group["weight_decay"] != 0:
                        torch._foreach_mul_(values, 1 - lr * group["weight_decay"])
                    torch._foreach_add_(values, buffers, alpha=momentum * momentum * correction)
                    torch._foreach_add_(values, grads, alpha=-(1 + momentum) * lr)
                    torch._foreach_mul_(buffers, momentum * correction)
                    torch._foreach_add_(buffers, grads, alpha=-lr)
            group["lr_old"] = lr
        return loss
