"""Small parameters and gradients for tests of optimizers, beside torch's own."""

from __future__ import annotations

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
