"""Adam with decoupled weight decay."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyseq.config import II, ConfigGroup
from pyseq.errors import CheckpointError, ConfigError
from pyseq.optim import Optimizer, register_optimizer
from pyseq.optim.clip_grad import by_device_and_dtype
from pyseq.optim.optimizer import learning_rates

HALF = (torch.float16, torch.bfloat16)
BUCKET_ELEMENTS = 1 << 24  # bounds the temporary memory of an update


@dataclass
class AdamConfig(ConfigGroup):
    adam_betas: str = field(default="(0.9, 0.999)", metadata={"help": "betas of Adam"})
    adam_eps: float = field(default=1e-8, metadata={"help": "epsilon of Adam, added to the uncorrected root of v"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay"})
    use_old_adam: bool = field(default=False, metadata={"help": "accepted, without effect: there is one form of Adam"})
    fp16_adam_stats: bool = field(default=False, metadata={"help": "not supported: Adam's states are fp32"})
    lr: list[float] = II("optimization.lr")


@register_optimizer("adam", dataclass=AdamConfig)
class Adam(Optimizer):
    """``--optimizer adam``. Only the first ``--lr`` is used; later ones are for the schedule."""

    checkpoint_name = "FairseqAdam"  # what the checkpoint format calls it

    def __init__(self, cfg: AdamConfig, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        if cfg.fp16_adam_stats:
            raise ConfigError("--fp16-adam-stats is not supported: Adam's states are fp32. Leave the flag out.")
        self._optimizer = ForeachAdam(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "betas": parse_betas(self.cfg.adam_betas),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }


def parse_betas(value: str | Iterable[float]) -> tuple[float, float]:
    """``"(0.9, 0.98)"``, ``"0.9,0.98"`` or a pair of numbers as two floats in [0, 1). Raises ConfigError otherwise."""
    try:
        first, second = ast.literal_eval(value) if isinstance(value, str) else value
        betas = float(first), float(second)
    except (ValueError, SyntaxError, TypeError):
        betas = math.nan, math.nan
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"--adam-betas '{value}': expected two numbers in [0, 1), like '(0.9, 0.98)'")
    return betas


class ForeachAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter, 2019).

    At step t, for a parameter p with gradient g::

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr weight_decay p
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t)  m / (sqrt(v) + eps)

    ``eps`` is added to the uncorrected sqrt(v), so it weighs more in early steps than in :class:`torch.optim.AdamW`.
    The update of 16-bit parameters is computed in fp32 and rounded once; their states are fp32.

    State of a parameter: ``{step: int, exp_avg, exp_avg_sq}``, empty before its first gradient.

    Raises:
        ConfigError: a setting out of range, ``amsgrad``, or a sparse gradient.
    """

    supports_memory_efficient_fp16 = True
    supports_flat_params = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        for flag, value in (("--adam-eps", eps), ("--weight-decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{flag} {value}: expected a finite number, not negative")
        # The order of the keys is that of the groups in a checkpoint.
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["amsgrad"]:
                raise ConfigError("amsgrad is not supported by adam. Leave it out of --optimizer-overrides.")
            for same in by_device_and_dtype(p for p in group["params"] if p.grad is not None):
                for bucket in buckets(same, BUCKET_ELEMENTS):
                    self._update(bucket, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """One step of ``params``, which have one dtype and one device."""
        (beta1, beta2), lr = group["betas"], group["lr"]
        states = [self._state_of(p) for p in params]
        exp_avgs = [state["exp_avg"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        values, grads = params, [p.grad for p in params if p.grad is not None]
        if params[0].dtype in HALF:
            values, grads = [p.float() for p in params], [g.float() for g in grads]

        torch._foreach_mul_(exp_avgs, beta1)
        torch._foreach_add_(exp_avgs, grads, alpha=1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - beta2)
        if group["weight_decay"] != 0:
            torch._foreach_add_(values, values, alpha=-lr * group["weight_decay"])
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(denominators, group["eps"])
        for state in states:
            state["step"] += 1
        sizes = [-lr * math.sqrt(1 - beta2 ** s["step"]) / (1 - beta1 ** s["step"]) for s in states]
        torch._foreach_addcdiv_(values, exp_avgs, denominators, sizes)
        if values is not params:
            torch._foreach_copy_(params, values)

    def _state_of(self, param: Tensor) -> dict[str, Any]:
        if param.grad is not None and param.grad.is_sparse:
            raise ConfigError("adam does not take sparse gradients. Choose --optimizer sgd, or dense embeddings.")
        state: dict[str, Any] = self.state[param]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(param, dtype=state_dtype(param))
            state["exp_avg_sq"] = torch.zeros_like(param, dtype=state_dtype(param))
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, the states in fp32 even if the parameters are not.

        Raises:
            CheckpointError: a state has another shape than its parameter. Nothing is changed then.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        saved = {i: (p, state_dict["state"][i]) for i, p in zip(ids, params) if i in state_dict["state"]}
        for i, (param, state) in saved.items():
            if state["exp_avg"].shape != param.shape or state["exp_avg_sq"].shape != param.shape:
                raise CheckpointError(
                    f"the optimizer state of parameter {i} has shape {tuple(state['exp_avg'].shape)} in the checkpoint "
                    f"and {tuple(param.shape)} in the model. Pass --reset-optimizer to begin with a fresh optimizer."
                )
        super().load_state_dict(state_dict)
        for param, state in saved.values():
            # torch has cast the states to the parameter's dtype: rounded, if that is a 16-bit one.
            place = {"device": param.device, "dtype": state_dtype(param)}
            self.state[param] = {
                "step": int(state["step"]),
                "exp_avg": state["exp_avg"].to(**place),
                "exp_avg_sq": state["exp_avg_sq"].to(**place),
            }


def state_dtype(param: Tensor) -> torch.dtype:
    return torch.float32 if param.dtype in HALF else param.dtype


def buckets(tensors: list[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """``tensors`` in order, in lists of at most ``limit`` elements; a larger tensor is alone in its list."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
