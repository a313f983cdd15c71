"""Linear layers that read activations in the order they lie in memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def tokenwise(fn: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """``fn``, which works along the last dimension alone, on ``x`` [T x B x C] without moving ``x`` in memory.

    ``others`` are further arguments of ``fn``, of the shape of ``x``.

    Layers pass T x B x C, but the activations lie batch-first, as attention reads them. Given such a view, torch's own
    linear and layer_norm would copy it into T x B order, and attention would copy it back.
    """
    if x.dim() == 3 and not x.is_contiguous():
        batch_first = x.transpose(0, 1)  # B x T x C
        if batch_first.is_contiguous():
            return fn(batch_first, *(other.transpose(0, 1) for other in others)).transpose(0, 1)
    return fn(x, *others)


class Linear(nn.Linear):
    """``nn.Linear`` (its initialisation too) that keeps the memory order of a T x B x C input."""

    def forward(self, x: Tensor) -> Tensor:
        return tokenwise(super().forward, x)


def xavier_linear(in_features: int, out_features: int, bias: bool = True) -> Linear:
    """A linear layer with Xavier-uniform weights (Glorot and Bengio, 2010) and zero bias."""
    layer = Linear(in_features, out_features, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
