"""Dropout that can be kept on at inference (Monte Carlo dropout, Gal and Ghahramani, 2016)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pyseq.modules.linear import tokenwise
from pyseq.ops import dispatch, dropout

logger = logging.getLogger(__name__)


class Dropout(nn.Module):
    """Zero elements with probability ``p`` and scale the rest by 1 / (1 - p), in training.

    Args:
        p: probability.
        module_name: class name of the owner; ``--retain-dropout-modules`` selects by it.
    """

    def __init__(self, p: float, module_name: str | None = None) -> None:
        super().__init__()
        self.p = p
        self.module_name = module_name
        self.apply_during_inference = False

    @property
    def active_p(self) -> float:
        """The probability that applies now: 0 at inference unless dropout is retained."""
        return self.p if self.training or self.apply_during_inference else 0.0

    def forward(self, x: Tensor, inplace: bool = False, residual: Tensor | None = None) -> Tensor:
        """``x`` after dropout, plus ``residual`` if there is one. ``inplace`` overwrites ``x`` with it."""
        p = self.active_p
        if p == 0:
            return x if residual is None else residual + x
        if residual is not None and residual.dtype == x.dtype and not self._is_torchs:
            result = tokenwise(lambda y, z: dropout(y, p, residual=z), x, residual)
        else:
            dropped = F.dropout(x, p) if self._is_torchs else tokenwise(lambda y: dropout(y, p), x)
            result = dropped if residual is None else residual + dropped
        return x.copy_(result) if inplace else result

    @property
    def _is_torchs(self) -> bool:
        """Whether the user asked for torch's operations: the reference of ours is for checking, not for training."""
        return dispatch.forced() == "torch"

    def make_generation_fast_(
        self,
        name: str,
        retain_dropout: bool = False,
        retain_dropout_modules: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if not retain_dropout:
            return
        if retain_dropout_modules is not None and self.module_name is None:
            logger.warning("dropout stays off in '%s': its module has no name to select it by", name)
        elif retain_dropout_modules is None or self.module_name in retain_dropout_modules:
            self.apply_during_inference = True

    def extra_repr(self) -> str:
        return f"p={self.p}"
