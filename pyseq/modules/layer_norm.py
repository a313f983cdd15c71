"""Layer normalisation (Ba et al., 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyseq.modules.linear import tokenwise
from pyseq.ops import dispatch, layer_norm


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` that keeps the memory order of a T x B x C input. Statistics are fp32 whatever the dtype.

    Args:
        normalized_shape: size of the last dimension.
        eps: added to the variance.
        elementwise_affine: learn a weight and a bias.
        export: accepted for callers that pass it; there is only one implementation to choose from.
    """

    def __init__(
        self, normalized_shape: int, eps: float = 1e-5, elementwise_affine: bool = True, export: bool = False
    ) -> None:
        super().__init__(normalized_shape, eps=eps, elementwise_affine=elementwise_affine)

    def forward(self, x: Tensor, residual: Tensor | None = None, p: float = 0.0) -> Tensor:
        """The norm of ``dropout(x, p) + residual``, which ends a post-norm block; of ``x`` without a residual.

        ``residual`` is of the shape, dtype and device of ``x``.
        """
        if residual is None:
            return tokenwise(super().forward, x)
        return tokenwise(lambda y, z: layer_norm(y, self.weight, self.bias, self.eps, residual=z, p=p), x, residual)

    def fuses(self, x: Tensor, residual: Tensor) -> bool:
        """Whether ``forward`` takes this residual. Not for subclasses, whose ``forward`` takes what it did."""
        return (
            type(self) is LayerNorm
            and len(self.normalized_shape) == 1
            and x.dtype == residual.dtype
            and dispatch.forced() != "torch"
            and not torch.is_autocast_enabled(x.device.type)
        )
