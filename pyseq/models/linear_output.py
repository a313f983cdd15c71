"""What a model says of a linear output layer, so that a criterion need not have all logits at once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from pyseq.modules.linear import is_hooked


class LinearOutput(NamedTuple):
    """Logits are ``features @ weight.T + bias``."""

    weight: Tensor  # [V x C]
    bias: Tensor | None = None  # [V]


def linear_output_of(projection: nn.Module) -> LinearOutput | None:
    """Weight and bias of a plain ``nn.Linear``; None for anything else, and for one that hooks watch."""
    if type(projection) is not nn.Linear or is_hooked(projection):
        return None
    return LinearOutput(projection.weight, projection.bias)
