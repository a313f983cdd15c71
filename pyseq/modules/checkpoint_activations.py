"""Recompute a module's activations in the backward pass instead of keeping them (Chen et al., 2016)."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

M = TypeVar("M", bound=nn.Module)


class CheckpointedForward:
    """Stands in for ``module.forward``. Names of parameters and sub-modules do not change."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = type(self.module).forward
        if not torch.is_grad_enabled():
            return forward(self.module, *args, **kwargs)
        return checkpoint(forward, self.module, *args, use_reentrant=False, **kwargs)


def checkpoint_activations(module: M) -> M:
    """Make ``module`` keep only its inputs for the backward pass. Dropout draws the same mask both times."""
    module.forward = CheckpointedForward(module)
    return module
