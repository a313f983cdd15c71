"""Inputs of linear_cross_entropy, and its losses and gradients as it, torch and float64 have them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops.cross_entropy import Options
from pyseq.ops.linear_cross_entropy import reference

IGNORE = -100
Case = tuple[Tensor, Tensor, Tensor | None, Tensor]


def case(rows: int, dim: int, classes: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> Case:
    generator = torch.Generator().manual_seed(rows + dim + classes)
    features = torch.randn(rows, dim, generator=generator)
    weight = torch.randn(classes, dim, generator=generator)
    offset = torch.randn(classes, generator=generator)
    target = torch.randint(0, classes, (rows,), generator=generator)
    target[1::3] = IGNORE
    tensors = [tensor.to(dtype).requires_grad_() for tensor in (features, weight, offset)]
    return tensors[0], tensors[1], tensors[2] if bias else None, target


def exact(tensors: Case, reduction: str, **options: Any) -> list[Tensor]:
    """The loss and the gradients of its sum weighted by 1, 2, 3, ..., in float64."""
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in tensors[:3]]
    rows = reference(*leaves, tensors[3], Options(**options), IGNORE)[0]  # type: ignore[arg-type]
    loss = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / tensors[3].ne(IGNORE).sum()}[reduction]
    return [loss.detach(), *gradients(loss, leaves)]


def gradients(loss: Tensor, leaves: Any, **options: Any) -> list[Tensor]:
    weighted = (loss * torch.arange(1, loss.numel() + 1).view(loss.shape)).sum()
    return list(torch.autograd.grad(weighted, [leaf for leaf in leaves if leaf is not None], **options))


def ours(tensors: Case, reduction: Any, chunk: int | None = None, **options: Any) -> list[Tensor]:
    features, weight, bias, target = tensors
    loss = ops.linear_cross_entropy(
        features, weight, target, linear_bias=bias, reduction=reduction, chunk_rows=chunk, **options
    )
    return [loss.detach(), *gradients(loss, tensors[:3])]


def theirs(tensors: Case, reduction: str, label_smoothing: float = 0.0) -> list[Tensor]:
    features, weight, bias, target = tensors
    logits = F.linear(features, weight, bias)
    loss = F.cross_entropy(logits, target, reduction=reduction, label_smoothing=label_smoothing)
    return [loss.detach(), *gradients(loss, tensors[:3])]


def relative_error(got: Tensor, want: Tensor) -> float:
    """The error's norm in parts of the norm, so that sums in another order are not held to a single element."""
    return float((got.double() - want).norm() / want.norm().clamp(min=1e-30)) if want.numel() else 0.0
