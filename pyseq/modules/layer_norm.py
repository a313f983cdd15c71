"""Layer normalisation (Ba et al., 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from pyseq.modules.linear import tokenwise


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

    def forward(self, x: Tensor) -> Tensor:
        return tokenwise(super().forward, x)
