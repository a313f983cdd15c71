from __future__ import annotations

import copy

import torch
from torch import nn

from pyseq.modules import Dropout, checkpoint_activations


def test_same_numbers_from_fewer_kept_activations() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), Dropout(0.5), nn.Linear(32, 8))
    less = checkpoint_activations(copy.deepcopy(plain))
    assert list(less.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 8)
    results, kept = [], []
    for module in (plain, less, copy.deepcopy(less)):
        sizes: list[int] = []

        def keep(t: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(t.numel())
            return t

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = module(x)
        kept.append(sum(sizes))
        out.square().sum().backward()
        results.append([out, *(p.grad for p in module.parameters())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    assert kept[1] < kept[0] / 4
    with torch.no_grad():
        assert torch.equal(less.eval()(x), plain.eval()(x))
