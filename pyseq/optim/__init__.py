"""Optimizers: plug-ins that turn gradients into an update of the parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from pyseq.errors import ConfigError
from pyseq.optim.clip_grad import clip_grad_norm_, get_total_norm
from pyseq.optim.fused_adam import FusedAdam, FusedAdamW
from pyseq.optim.optimizer import Optimizer
from pyseq.registry import Registry, import_siblings

__all__ = [
    "OPTIMIZERS",
    "FusedAdam",
    "FusedAdamW",
    "Optimizer",
    "build_optimizer",
    "clip_grad_norm_",
    "get_total_norm",
    "register_optimizer",
]

OPTIMIZERS = Registry("optimizer", Optimizer, required=True)
register_optimizer = OPTIMIZERS.register


def build_optimizer(cfg: Any, params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> Optimizer:
    """The optimizer that ``cfg`` chooses, over those of ``params`` that require a gradient.

    Args:
        cfg: the optimizer's config, its name, or a flat namespace with an ``optimizer``.
        params: parameters; or dicts, each either a parameter group of torch.optim (it has a key ``params``)
            or a mapping from names to parameters.

    Raises:
        ConfigError: no optimizer or an unknown one is chosen, or nothing requires a gradient.
    """
    wanted = trainable(params)
    if not wanted:
        raise ConfigError("no parameter requires a gradient: there is nothing for the optimizer to train")
    optimizer: Optimizer = OPTIMIZERS.build(cfg, wanted)
    return optimizer


def trainable(params: Iterable[Any]) -> list[Any]:
    """Those of ``params`` (see :func:`build_optimizer`) that require a gradient; parameter groups stay groups."""
    kept: list[Any] = []
    for entry in params:
        if isinstance(entry, dict) and "params" in entry:
            inside = entry["params"]
            group = trainable([inside] if isinstance(inside, Tensor) else inside)
            kept += [{**entry, "params": group}] if group else []
        elif isinstance(entry, dict):
            kept += trainable(entry.values())
        elif entry.requires_grad:
            kept.append(entry)
    return kept


import_siblings(__file__, __name__)
