"""How far a result is from the exact one, and how far it may be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def error(result: Tensor, exact: Tensor) -> float:
    """The largest distance; nan where only one of them is nan, or they are different infinities."""
    same = (result == exact) | (result.isnan() & exact.isnan())  # equal infinities differ by nan
    return float(torch.where(same, 0.0, (result.double() - exact.double()).abs()).max()) if exact.numel() else 0.0


def mean_error(result: Tensor, exact: Tensor) -> float:
    """The root of the mean square of the distances. It says more than the largest one where numbers are few."""
    return float((result.double() - exact.double()).square().mean().sqrt())


def assert_near(
    result: Tensor,
    reference: Tensor,
    exact: Tensor,
    *,
    factor: float = 1.5,
    ulps: float = 0.5,
    name: str = "",
    error: Callable[[Tensor, Tensor], float] = error,
) -> None:
    """The error is at most ``factor`` times that of the torch reference, or ``ulps`` of the largest exact number."""
    finite = exact[exact.isfinite()]
    ulp = float(finite.abs().max()) * torch.finfo(result.dtype).eps if finite.numel() else 0.0
    theirs, ours = error(reference, exact), error(result, exact)
    allowed = max(factor * theirs, ulps * ulp)
    assert ours <= allowed, f"{name}: error {ours}, torch reference {theirs}, allowed {allowed}"
