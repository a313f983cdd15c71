"""Adafactor: second moments of matrices by their row and column sums."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim import Optimizer, register_optimizer
from pyseq.optim.in_fp32 import in_fp32, to_update, zeros
from pyseq.optim.not_compiled import TorchOptimizer
from pyseq.optim.optimizer import learning_rates


@dataclass
class AdafactorConfig(ConfigGroup):
    adafactor_eps: str = field(
        default="(1e-30, 1e-3)", metadata={"help": "added to squared gradients; least scale of --scale-parameter"}
    )
    clip_threshold: float = field(default=1.0, metadata={"help": "largest root mean square of an update"})
    decay_rate: float = field(default=-0.8, metadata={"help": "the second moment's beta at step t is 1 - t^decay_rate"})
    beta1: float | None = field(
        default=None, metadata={"help": "beta of a running average of updates; none without it"}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay", "argparse_alias": "--wd"})
    scale_parameter: bool = field(
        default=False, metadata={"help": "multiply the learning rate by each tensor's root mean square"}
    )
    relative_step: bool = field(
        default=False, metadata={"help": "take min(0.01, 1 / sqrt(t)) as learning rate, in the place of --lr"}
    )
    warmup_init: bool = field(default=False, metadata={"help": "with --relative-step: min(1e-6 t, 1 / sqrt(t))"})
    lr: list[float] = II("optimization.lr")


@register_optimizer("adafactor", dataclass=AdafactorConfig)
class AdafactorOptimizer(Optimizer):
    """``--optimizer adafactor``. Only the first ``--lr`` is used; later ones are for the schedule."""

    checkpoint_name = "FairseqAdafactor"  # what the checkpoint format calls it

    def __init__(self, cfg: AdafactorConfig, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        if cfg.warmup_init and not cfg.relative_step:
            raise ConfigError("--warmup-init is a form of --relative-step: give both, or neither")
        if not cfg.clip_threshold > 0:
            raise ConfigError(f"--clip-threshold {cfg.clip_threshold:g}: must be positive")
        if cfg.beta1 is not None and not 0 <= cfg.beta1 < 1:
            raise ConfigError(f"--beta1 {cfg.beta1:g}: must be in [0, 1)")
        self._optimizer = Adafactor(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "eps": parse_eps(self.cfg.adafactor_eps),
            "clip_threshold": self.cfg.clip_threshold,
            "decay_rate": self.cfg.decay_rate,
            "beta1": self.cfg.beta1,
            "weight_decay": self.cfg.weight_decay,
            "scale_parameter": self.cfg.scale_parameter,
            "relative_step": self.cfg.relative_step,
            "warmup_init": self.cfg.warmup_init,
        }


def parse_eps(value: str | Iterable[float]) -> tuple[float, float]:
    """``"(1e-30, 1e-3)"`` or a pair of numbers as two floats, not negative. Raises ConfigError otherwise."""
    try:
        first, second = ast.literal_eval(value) if isinstance(value, str) else value
        eps = float(first), float(second)
    except (ValueError, SyntaxError, TypeError):
        eps = math.nan, math.nan
    if not all(0 <= e < math.inf for e in eps):
        raise ConfigError(f"--adafactor-eps '{value}': expected two numbers, like '(1e-30, 1e-3)'")
    return eps


class Adafactor(TorchOptimizer):
    """Adafactor (Shazeer and Stern, 2018, algorithms 4 and 5).

    At step t with b = 1 - t^decay_rate, for a tensor p with gradient g::

        R = b R + (1 - b) mean over columns of (g^2 + eps[0])         C likewise over rows; v for a vector
        u = g / sqrt(R / mean(R)) / sqrt(C)                           g / sqrt(v)
        u = lr u / max(1, rms(u) / clip_threshold)
        p = p - lr weight_decay p - u                                 or a running average of u, with beta1

    ``lr`` is the group's, or 1 / sqrt(t) bounded (``relative_step``); times max(eps[1], rms(p)) (``scale_parameter``).
    A tensor of more than two dimensions is a stack of matrices.

    State of a parameter: ``step: int``, ``exp_avg_sq_row`` and ``exp_avg_sq_col`` or ``exp_avg_sq``, and ``exp_avg``
    with beta1.
    """

    supports_memory_efficient_fp16 = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = False,
        relative_step: bool = False,
        warmup_init: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for params in to_update(group["params"], "adafactor"):
                with in_fp32(params) as (values, grads):
                    for param, value, grad in zip(params, values, grads):
                        if value.numel():
                            self._update(self._state_of(param, group), value, grad, group)
        return loss

    def _state_of(self, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.state[param]
        if not state:
            state["step"] = 0
            if param.dim() >= 2:
                state["exp_avg_sq_row"] = zeros(param, param.shape[:-1])
                state["exp_avg_sq_col"] = zeros(param, param.shape[:-2] + param.shape[-1:])
            else:
                state["exp_avg_sq"] = zeros(param)
        if group["beta1"] is not None and "exp_avg" not in state:
            state["exp_avg"] = zeros(param)
        return state

    def _update(self, state: dict[str, Any], value: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state["step"] += 1
        lr = self._lr(state["step"], value, group)
        weight = state["step"] ** group["decay_rate"]
        square = grad * grad + group["eps"][0]
        if value.dim() >= 2:
            row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            row.lerp_(square.mean(dim=-1), weight)
            col.lerp_(square.mean(dim=-2), weight)
            update = grad * (row / row.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1) * col.rsqrt().unsqueeze(-2)
        else:
            update = grad * state["exp_avg_sq"].lerp_(square, weight).rsqrt()
        update *= lr / (rms(update) / group["clip_threshold"]).clamp(min=1.0)
        if group["beta1"] is not None:
            update = state["exp_avg"].lerp_(update, 1 - group["beta1"])
        if group["weight_decay"] != 0:
            value.sub_(value * (lr * group["weight_decay"]))
        value.sub_(update)

    @staticmethod
    def _lr(step: int, value: Tensor, group: dict[str, Any]) -> Tensor | float:
        lr: float = group["lr"]
        if group["relative_step"]:
            lr = min(1e-6 * step if group["warmup_init"] else 1e-2, 1 / math.sqrt(step))
        return rms(value).clamp(min=group["eps"][1]) * lr if group["scale_parameter"] else lr


def rms(values: Tensor) -> Tensor:
    """The root of the mean of squares."""
    return torch.linalg.vector_norm(values) / math.sqrt(values.numel())
