from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyseq.modules import LayerNorm


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_norm_of_a_sum_keeps_the_memory_order(p: float) -> None:
    """T x B x C views of B x T x C memory, as attention gives them, are not copied into another order."""
    norm = LayerNorm(8)
    x, residual = (torch.randn(3, 5, 8).transpose(0, 1) for _ in range(2))
    torch.manual_seed(1)
    y = norm(x, residual=residual, p=p)
    assert y.transpose(0, 1).is_contiguous()
    torch.manual_seed(1)
    batch_first = norm(x.transpose(0, 1), residual=residual.transpose(0, 1), p=p)
    assert torch.equal(y, batch_first.transpose(0, 1))
    if p == 0:
        assert torch.allclose(y, F.layer_norm(x + residual, (8,)), atol=1e-6)


def test_what_fuses() -> None:
    x = torch.ones(2, 8)

    class Own(LayerNorm):
        pass

    assert LayerNorm(8).fuses(x, x)
    assert not Own(8).fuses(x, x)
    assert not LayerNorm(8).fuses(x, x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not LayerNorm(8).fuses(x, x)
