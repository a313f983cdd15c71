"""Adam with decoupled weight decay."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyseq.config import II, ConfigGroup
from pyseq.errors import ConfigError
from pyseq.optim import Optimizer, register_optimizer
from pyseq.optim.fused_adam import FusedAdamW
from pyseq.optim.optimizer import learning_rates

GROUP_KEYS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "params")


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
    """``--optimizer adam``. Only the first ``--lr`` is used; later ones are for the schedule.

    :class:`FusedAdamW` with eps added to the uncorrected sqrt(v), so that it weighs more in early steps than in
    torch.optim.AdamW. 16-bit parameters are updated in fp32 and rounded once; states are fp32.
    """

    checkpoint_name = "FairseqAdam"  # what the checkpoint format calls it

    def __init__(self, cfg: AdamConfig, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        if cfg.fp16_adam_stats:
            raise ConfigError("--fp16-adam-stats is not supported: Adam's states are fp32. Leave the flag out.")
        for flag, value in (("--adam-eps", cfg.adam_eps), ("--weight-decay", cfg.weight_decay)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{flag} {value}: expected a finite number, not negative")
        self._optimizer = FusedAdamW(params, **self.optimizer_config, eps_mode="fairseq", masters="none")

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "betas": parse_betas(self.cfg.adam_betas),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    def state_dict(self) -> dict[str, Any]:
        """In the form of the checkpoint format: counts of steps are numbers, groups have the settings that it knows."""
        saved = super().state_dict()
        steps = iter(_numbers([state["step"] for state in saved["state"].values()]))
        return {
            "state": {key: {**state, "step": next(steps)} for key, state in saved["state"].items()},
            "param_groups": [{key: group[key] for key in GROUP_KEYS} for group in saved["param_groups"]],
        }


def _numbers(steps: list[Tensor]) -> list[int]:
    return [int(step) for step in torch.stack(steps).tolist()] if steps else []


def parse_betas(value: str | Iterable[float], flag: str = "--adam-betas") -> tuple[float, float]:
    """``"(0.9, 0.98)"``, ``"0.9,0.98"`` or a pair of numbers as two floats in [0, 1). Raises ConfigError otherwise."""
    try:
        first, second = ast.literal_eval(value) if isinstance(value, str) else value
        betas = float(first), float(second)
    except (ValueError, SyntaxError, TypeError):
        betas = math.nan, math.nan
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"{flag} '{value}': expected two numbers in [0, 1), like '(0.9, 0.98)'")
    return betas
