"""Small parameters and gradients for tests of optimizers, beside torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from pyseq.optim import FusedAdam, FusedAdamW

# A matrix, a vector, a scalar, an empty tensor.
SHAPES = [(17, 5), (33,), (), (0, 3)]
PAIRS = [(FusedAdam, torch.optim.Adam), (FusedAdamW, torch.optim.AdamW)]


def parameters(dtype=torch.float32, seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def copies(params, dtype=None):
    return [nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in params]


def draw_grads(t, *lists, scale=1.0):
    """Give the parameters of each list the same gradients, those of step ``t``."""
    generator = torch.Generator().manual_seed(1000 + t)
    for row in zip(*lists):
        grad = torch.randn(row[0].shape, generator=generator, dtype=torch.float64) * scale * (1 + t % 7)
        rounded = grad.to(min((p.dtype for p in row), key=lambda dtype: torch.finfo(dtype).bits))
        for p in row:
            p.grad = rounded.to(p.dtype, copy=True)


def assert_near(ours, theirs, exact):
    """``ours`` are as near to fp64 as torch's fp32 are, but for half as much again: the largest error of all elements.

    (That of a tensor of one element is a matter of luck.)
    """
    error, allowed = (
        max((a.double() - c).abs().max().item() for a, c in zip(tensors, exact) if a.numel())
        for tensors in (ours, theirs)
    )
    assert error <= 1.5 * allowed


def assert_updates_follow(
    optimizer_of: Callable[[list[nn.Parameter]], Any], lr: float, trajectory: Callable[[Any, Any, Any], Any]
) -> None:
    """200 updates with the learning rate ``lr / t`` are at most twice as far from float64 as the formula in fp32 is.

    Args:
        trajectory: of (start, gradients, dtype), where the formula ends in numbers of that dtype.
    """
    rng = np.random.default_rng(0)
    start = rng.normal(size=(17, 5)).astype(np.float32)
    grads = rng.normal(size=(200, 17, 5)).astype(np.float32)
    p = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = optimizer_of([p])
    for t, g in enumerate(grads, 1):
        optimizer.set_lr(lr / t)
        p.grad = torch.from_numpy(g)
        optimizer.step()
    exact, fp32 = (trajectory(start, grads, dtype) for dtype in (np.float64, np.float32))
    assert np.abs(p.detach().numpy() - exact).max() <= 2 * np.abs(fp32 - exact).max()
