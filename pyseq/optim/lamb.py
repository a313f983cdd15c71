"""LAMB: Adam with a step length for each tensor, for large batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim import Optimizer, register_optimizer
from pyseq.optim.adam import parse_betas
from pyseq.optim.clip_grad import measure
from pyseq.optim.in_fp32 import in_fp32, to_update, zeros
from pyseq.optim.not_compiled import TorchOptimizer
from pyseq.optim.optimizer import learning_rates


@dataclass
class LAMBConfig(ConfigGroup):
    lamb_betas: str = field(default="(0.9, 0.999)", metadata={"help": "betas of LAMB"})
    lamb_eps: float = field(default=1e-8, metadata={"help": "epsilon of LAMB"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay", "argparse_alias": "--wd"})
    lr: list[float] = II("optimization.lr")


@register_optimizer("lamb", dataclass=LAMBConfig)
class LAMBOptimizer(Optimizer):
    """``--optimizer lamb``. Only the first ``--lr`` is used; later ones are for the schedule."""

    checkpoint_name = "FairseqLAMB"  # what the checkpoint format calls it

    def __init__(self, cfg: LAMBConfig, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        for flag, value in (("--lamb-eps", cfg.lamb_eps), ("--weight-decay", cfg.weight_decay)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{flag} {value}: expected a finite number, not negative")
        self._optimizer = LAMB(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "betas": parse_betas(self.cfg.lamb_betas, "--lamb-betas"),
            "eps": self.cfg.lamb_eps,
            "weight_decay": self.cfg.weight_decay,
        }


class LAMB(TorchOptimizer):
    """LAMB (You et al., 2020, algorithm 2, with bias correction).

    All gradients together are first clipped to ``max_grad_norm``. Then at step t, for a tensor p with gradient g::

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p
        p = p - lr |p| / |u| u          (lr u, if p or u is 0)

    State of a parameter: ``{step: int, exp_avg, exp_avg_sq}``.
    """

    supports_memory_efficient_fp16 = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lists = [(group, to_update(group["params"], "lamb")) for group in self.param_groups]
        grads = [p.grad for _, found in lists for params in found for p in params if p.grad is not None]
        factor = measure(grads, max_norm=self.defaults["max_grad_norm"]).factor
        for group, found in lists:
            for params in found:
                with in_fp32(params) as (values, grads):
                    scaled = torch._foreach_mul(grads, factor.to(grads[0].device, grads[0].dtype, non_blocking=True))
                    self._update(params, values, list(scaled), group)
        return loss

    def _update(self, params: list[Tensor], values: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[param] for param in params]
        for param, state in zip(params, states):
            if not state:
                state.update({"step": 0, "exp_avg": zeros(param), "exp_avg_sq": zeros(param)})
            state["step"] += 1
        exp_avgs = [state["exp_avg"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(exp_avgs, beta1)
        torch._foreach_add_(exp_avgs, grads, alpha=1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - beta2)
        divisors = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_div_(divisors, [math.sqrt(1 - beta2 ** state["step"]) for state in states])
        torch._foreach_add_(divisors, group["eps"])
        updates = torch._foreach_div(exp_avgs, divisors)
        torch._foreach_div_(updates, [1 - beta1 ** state["step"] for state in states])
        torch._foreach_add_(updates, values, alpha=group["weight_decay"])
        ratios = [
            torch.where((p > 0) & (u > 0), p / u, torch.ones_like(p))
            for p, u in zip(torch._foreach_norm(values), torch._foreach_norm(updates))
        ]
        torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(values, updates, alpha=-group["lr"])
