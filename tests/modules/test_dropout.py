from __future__ import annotations

import torch
import torch.nn.functional as F

from pyseq import ops
from pyseq.modules import Dropout


def test_values_are_dropped_and_the_rest_scaled() -> None:
    torch.manual_seed(0)
    x = torch.full((100_000,), 3.0)
    y = Dropout(0.25)(x)
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert abs((y == 0).float().mean() - 0.25) < 0.01


def test_nothing_happens_at_inference_unless_asked() -> None:
    x = torch.ones(1000)
    for modules, name, stays in ((None, None, True), (["A"], "A", True), (["B"], "A", False), (["A"], None, False)):
        dropout = Dropout(0.5, module_name=name).eval()
        assert dropout(x) is x
        dropout.make_generation_fast_(name="a.b", retain_dropout=False, retain_dropout_modules=modules)
        assert dropout(x) is x
        dropout.make_generation_fast_(name="a.b", retain_dropout=True, retain_dropout_modules=modules)
        assert bool((dropout(x) == 0).any()) == stays


def test_a_residual_is_added_in_the_memory_order_of_x() -> None:
    x, residual = (torch.randn(3, 5, 8).transpose(0, 1) for _ in range(2))
    dropout = Dropout(0.5)
    torch.manual_seed(1)
    apart = dropout(x) + residual
    torch.manual_seed(1)
    together = dropout(x, residual=residual)
    assert torch.equal(apart, together) and together.transpose(0, 1).is_contiguous()
    assert torch.equal(dropout.eval()(x, residual=residual), residual + x)


def test_inplace_overwrites() -> None:
    x = torch.ones(100)
    y = Dropout(0.5)(x, inplace=True)
    assert y is x and bool((x == 0).any())


def test_the_torch_back_end_is_dropout_of_torch() -> None:
    x, residual = torch.randn(40, 8), torch.randn(40, 8)
    with ops.backend("torch"):
        torch.manual_seed(3)
        found = Dropout(0.5)(x, residual=residual)
    torch.manual_seed(3)
    assert torch.equal(found, residual + F.dropout(x, 0.5))
