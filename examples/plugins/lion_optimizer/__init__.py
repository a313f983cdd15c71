"""An optimizer as a plug-in: pyseq-train ... --user-dir lion_optimizer --optimizer lion --lr 3e-4 --weight-decay 0.1"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim import Optimizer, register_optimizer
from pyseq.optim.optimizer import learning_rates


@dataclass
class LionConfig(ConfigGroup):
    lion_betas: tuple[float, float] = field(default=(0.9, 0.99), metadata={"help": "betas of update and momentum"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay", "argparse_alias": "--wd"})
    lr: list[float] = II("optimization.lr")


@register_optimizer("lion", dataclass=LionConfig)
class LionOptimizer(Optimizer):
    """``--optimizer lion``. Its learning rate is 3 to 10 times smaller than Adam's, its weight decay as much larger."""

    def __init__(self, cfg: LionConfig, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        if len(cfg.lion_betas) != 2 or not all(0 <= beta < 1 for beta in cfg.lion_betas):
            raise ConfigError(f"--lion-betas {cfg.lion_betas}: give two numbers of at least 0 and below 1")
        self._optimizer = Lion(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """What a resumed run takes from the command line, not from the checkpoint."""
        return {
            "lr": learning_rates(self.cfg)[0],
            "betas": tuple(self.cfg.lion_betas),
            "weight_decay": self.cfg.weight_decay,
        }


class Lion(torch.optim.Optimizer):
    """EvoLved Sign Momentum (Chen et al., 2023, algorithm 2)::

        u = sign(beta1 m + (1 - beta1) g)
        p = p - lr (u + weight_decay p)
        m = beta2 m + (1 - beta2) g

    The only state is the momentum m, half of Adam's.
    """

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                momentum = state["exp_avg"]
                update = momentum.mul(beta1).add_(p.grad, alpha=1 - beta1).sign_()
                p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr)
                momentum.mul_(beta2).add_(p.grad, alpha=1 - beta2)
        return loss
