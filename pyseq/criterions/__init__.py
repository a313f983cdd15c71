"""Criterions: plug-ins that turn a model's output into a loss."""

from __future__ import annotations

from typing import Any

from pyseq.criterions.criterion import Criterion
from pyseq.criterions.fused_cross_entropy import FusedCrossEntropy
from pyseq.registry import Registry, import_siblings

__all__ = ["CRITERIONS", "Criterion", "FusedCrossEntropy", "build_criterion", "register_criterion"]

CRITERIONS = Registry("criterion", Criterion, default="cross_entropy")
register_criterion = CRITERIONS.register


def build_criterion(cfg: Any, task: Any) -> Criterion:
    """The criterion that ``cfg`` chooses, for ``task``.

    Args:
        cfg: the criterion's config, its name, or a flat namespace with a ``criterion``.
        task: its target dictionary says which targets are padding.

    Raises:
        ConfigError: the criterion is unknown, or an argument of its constructor cannot be inferred.
    """
    criterion: Criterion = CRITERIONS.build(cfg, task)
    return criterion


import_siblings(__file__, __name__)
