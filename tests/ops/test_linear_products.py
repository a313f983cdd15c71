"""The three products of a chunk, by each library that they may be left to."""

from __future__ import annotations

import pytest
import torch

from pyseq.ops.linear_cross_entropy import products

# Rows, width, classes. Wide and narrow rows; several blocks of classes and a part of one; one of everything; nothing.
SIZES = [(9, 300, 7001), (9, 40, 20_000), (600, 8, 50), (1, 1, 1), (3, 0, 5)]


def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture(params=["torch.mm", "oneDNN"])
def library(request, monkeypatch):
    if request.param == "oneDNN" and not has_onednn():
        pytest.skip("this torch has no torch.ops.mkldnn._linear_pointwise")
    monkeypatch.setattr(products, "_onednn_is_better", lambda: request.param == "oneDNN")
    return request.param


def assert_right(found, left, right, times=1, plus=0.0):
    """``times left right + plus`` in fp32, in whatever order: within the bound of Higham (2002), (3.5)."""
    terms = times * left.size(1) + 2
    exact = times * left.double() @ right.double() + plus
    sizes = times * left.double().abs() @ right.double().abs() + abs(plus)
    assert found.dtype == torch.float32
    assert ((found.double() - exact).abs() <= terms * 2.0**-24 * sizes).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_products(library, size, with_bias):
    rows, width, classes = size
    torch.manual_seed(0)
    chunk, weight = torch.randn(rows, width), torch.randn(classes, width)
    bias = torch.randn(classes) if with_bias else None
    buffer = torch.full((rows + 2, classes), 7.0)
    found = products.logits(chunk, weight, bias, buffer)
    assert found.data_ptr() == buffer.data_ptr() and (buffer[rows:] == 7).all()
    assert_right(found, chunk, weight.t(), plus=0.0 if bias is None else bias.double())

    gradient, out = torch.randn(rows, classes), torch.full((rows, width), float("nan"))
    products.input_gradient(gradient, weight, out)
    assert_right(out, gradient, weight)

    total = torch.full((classes, width), float("nan"))
    products.add_weight_gradient(total, gradient, chunk, first=True)
    products.add_weight_gradient(total, gradient, chunk, first=False)
    assert_right(total, gradient.t(), chunk, times=2)
