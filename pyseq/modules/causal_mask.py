"""The mask that hides the future, and how attention recognises it."""

from __future__ import annotations

import torch
from torch import Tensor


def future_mask(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf above the diagonal, 0 elsewhere [size x size]."""
    return torch.full((size, size), float("-inf"), dtype=dtype, device=device).triu(1)


def mark_causal(mask: Tensor) -> Tensor:
    """Note on ``mask`` that it is a future mask, so that attention may use a kernel that needs no mask at all.

    The note belongs to this tensor object. A tensor made from it has none and is added to the scores as it stands.
    """
    mask.is_causal = True  # type: ignore[attr-defined]
    return mask


def is_causal(mask: Tensor | None) -> bool:
    return getattr(mask, "is_causal", False)
