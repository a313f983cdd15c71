from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.sgd import SGDConfig
from support.optimizers import assert_updates_follow


def sgd_of(params, **options):
    return build_optimizer(SGDConfig("sgd", **{"lr": [0.05]} | options), params)


def trajectory(start, grads, momentum, weight_decay, dtype):
    p, buffer = start.astype(dtype), np.zeros_like(start, dtype)
    for t, g in enumerate(grads, 1):
        buffer = dtype(momentum) * buffer + (g.astype(dtype) + dtype(weight_decay) * p)
        p = p - dtype(0.05 / t) * buffer
    return p


@pytest.mark.parametrize("momentum, weight_decay", [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_two_hundred_updates_against_float64(momentum, weight_decay):
    assert_updates_follow(
        lambda params: sgd_of(params, momentum=momentum, weight_decay=weight_decay),
        0.05,
        lambda start, grads, dtype: trajectory(start, grads, momentum, weight_decay, dtype),
    )


def test_sparse_gradients_change_only_their_rows():
    embedding = nn.Embedding(4, 2, sparse=True)
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([1, 1])).sum().backward()
    sgd_of(embedding.parameters(), lr=[0.5]).step()
    before[1] -= 1.0
    assert torch.equal(embedding.weight.detach(), before)


def test_state_goes_on_where_it_was():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    a, b = sgd_of([p], momentum=0.9), sgd_of([q], momentum=0.9)
    p.grad = torch.tensor([1.0, 2.0, 3.0])
    a.step()
    q.data.copy_(p.data)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for parameter, optimizer in ((p, a), (q, b)):
        parameter.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("name, flag", [("momentum", "--momentum"), ("weight_decay", "--weight-decay")])
def test_settings_that_cannot_be(name, flag):
    with pytest.raises(ConfigError, match=f"{flag} -1: cannot be negative"):
        sgd_of([nn.Parameter(torch.zeros(1))], **{name: -1.0})
