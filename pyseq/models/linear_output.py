"""What a model says of a linear output layer, so that a criterion need not have all logits at once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


class LinearOutput(NamedTuple):
    """Logits are ``features @ weight.T + bias``."""

    weight: Tensor  # [V x C]
    bias: Tensor | None = None  # [V]


def linear_output_of(projection: nn.Module) -> LinearOutput | None:
    """Weight and bias of a plain ``nn.Linear``; None for anything else, and for one that hooks watch."""
    if type(projection) is not nn.Linear or is_hooked(projection):
        return None
    return LinearOutput(projection.weight, projection.bias)


def is_hooked(module: nn.Module) -> bool:
    """Whether calls of ``module``, or their gradients, are watched or changed."""
    return any(getattr(module, hooks, None) for hooks in HOOKS)


def inherits(instance: object, base: type, *names: str) -> bool:
    """Whether the class of ``instance`` overrides none of these methods of ``base``."""
    return all(getattr(type(instance), name, None) is getattr(base, name) for name in names)
