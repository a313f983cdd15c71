"""FusedCrossEntropy in place of torch.nn.CrossEntropyLoss."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import pyseq.ops as ops
from pyseq.criterions import Criterion, FusedCrossEntropy

CASES: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1, "ignore_index": 2},
    {"weight": torch.linspace(0.5, 2, 7), "reduction": "sum"},
    {"weight": torch.linspace(0.5, 2, 7), "label_smoothing": 0.1, "ignore_index": 2},
    {"reduction": "none"},
]


@pytest.mark.parametrize("options", CASES)
def test_value_and_gradient_are_those_of_torch(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, target = torch.randn(5, 7, 3, generator=generator), torch.randint(7, (5, 3), generator=generator)
    exact = logits.double().requires_grad_()
    want = nn.CrossEntropyLoss(**options).double()(exact, target)
    leaf = logits.requires_grad_()
    got = FusedCrossEntropy(**options)(leaf, target)
    want.sum().backward()
    got.sum().backward()
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=3e-6, atol=3e-7)  # type: ignore[union-attr]


def test_it_takes_all_arguments_of_torch_in_their_order_and_all_keywords_of_the_operation() -> None:
    ours = list(inspect.signature(FusedCrossEntropy).parameters)
    assert ours[:6] == list(inspect.signature(nn.CrossEntropyLoss).parameters)
    assert set(ours) == set(inspect.signature(ops.cross_entropy).parameters) - {"input", "target"}


def test_the_weight_is_a_buffer_as_in_torch() -> None:
    weight = torch.ones(7)
    ours, theirs = FusedCrossEntropy(weight), nn.CrossEntropyLoss(weight)
    assert ours.state_dict().keys() == theirs.state_dict().keys() == {"weight"}
    theirs.load_state_dict(ours.state_dict())
    assert FusedCrossEntropy().state_dict() == {} and ours.double().weight.dtype == torch.float64  # type: ignore[union-attr]


def test_keywords_reach_the_operation() -> None:
    logits, target = torch.randn(5, 7), torch.arange(5)
    keywords: dict[str, Any] = {"smoothing_form": "fairseq", "z_loss": 1e-2, "soft_cap": 3.0, "class_dim": -1}
    got = FusedCrossEntropy(label_smoothing=0.1, **keywords)(logits, target)
    assert torch.equal(got, ops.cross_entropy(logits, target, label_smoothing=0.1, **keywords))
    leaf = logits.clone().requires_grad_()
    given = leaf * 1
    FusedCrossEntropy(inplace="donate")(given, target).backward()
    assert not torch.equal(given, logits) and leaf.grad is not None


@pytest.mark.filterwarnings("ignore:size_average and reduce")
def test_the_older_words() -> None:
    assert FusedCrossEntropy(size_average=False).reduction == "sum"
    assert FusedCrossEntropy(reduce=False).reduction == "none"


def test_it_is_no_criterion_of_the_trainer() -> None:
    assert not isinstance(FusedCrossEntropy(), Criterion)
    assert "reduction=mean" in repr(FusedCrossEntropy())
