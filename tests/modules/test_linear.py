"""Linear layers and norms do what torch's do, and leave activations where they lie."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyseq.modules import LayerNorm, xavier_linear
from pyseq.modules.linear import Linear

T, B, C = 5, 3, 8


@pytest.mark.parametrize("ours, theirs", [(Linear(C, C), nn.Linear(C, C)), (LayerNorm(C), nn.LayerNorm(C))])
def test_every_memory_order(ours: nn.Module, theirs: nn.Module) -> None:
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(B, T, C).transpose(0, 1)
    y = ours(x)
    torch.testing.assert_close(y, theirs(x), rtol=0, atol=1e-6)
    assert y.stride() == x.stride()
    for other in (x.contiguous(), x[0], x[0, 0], x[:, :, None], x.transpose(0, 2)[:, :, :0].transpose(0, 2), x[:, :0]):
        torch.testing.assert_close(ours(other), theirs(other), rtol=0, atol=1e-6)


def test_initialisation_is_torchs_or_xavier() -> None:
    torch.manual_seed(0)
    ours = Linear(4, 6)
    torch.manual_seed(0)
    assert torch.equal(ours.weight, nn.Linear(4, 6).weight)
    xavier = xavier_linear(400, 600)
    bound = (6 / 1000) ** 0.5
    assert 0.99 * bound < xavier.weight.abs().max() <= bound
    assert torch.all(xavier.bias == 0) and xavier_linear(4, 6, bias=False).bias is None
