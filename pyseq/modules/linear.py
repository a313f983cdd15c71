"""Linear layers that read activations in the order they lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyseq.ops import dispatch, linear

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


def is_hooked(module: nn.Module) -> bool:
    """Whether calls of ``module``, or their gradients, are watched or changed."""
    return any(getattr(module, hooks, None) for hooks in HOOKS)


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
        return tokenwise(lambda rows: linear(rows, self.weight, self.bias), x)


def is_plain(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear layer that nothing watches, so that its product may be made elsewhere."""
    return type(layer) in (Linear, nn.Linear) and not is_hooked(layer)


def stacked(x: Tensor, *layers: nn.Module) -> Tensor:
    """What several linear layers make of ``x`` [... x C], next to each other in the last dimension: one product."""
    if not _can_be_one(layers):
        return torch.cat([layer(x) for layer in layers], dim=-1)
    return _as_one(x, layers)


def side_by_side(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each of several linear layers makes of ``x`` [... x C]: views of one product, where that can be."""
    if dispatch.forced() == "torch" or not _can_be_one(layers):
        return [layer(x) for layer in layers]
    return list(_as_one(x, layers).split([layer.out_features for layer in layers], dim=-1))


def _can_be_one(layers: Sequence[nn.Module]) -> bool:
    without_bias = [getattr(layer, "bias", None) is None for layer in layers]
    return all(map(is_plain, layers)) and (all(without_bias) or not any(without_bias))


def _as_one(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    weight = torch.cat([layer.weight for layer in layers])  # type: ignore[misc]
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])  # type: ignore[misc]
    return tokenwise(lambda rows: linear(rows, weight, bias), x)


def xavier_linear(in_features: int, out_features: int, bias: bool = True) -> Linear:
    """A linear layer with Xavier-uniform weights (Glorot and Bengio, 2010) and zero bias."""
    layer = Linear(in_features, out_features, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
