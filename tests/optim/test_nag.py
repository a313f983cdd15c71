from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.nag import NAGConfig
from support.optimizers import assert_updates_follow


def nag_of(params, **options):
    return build_optimizer(NAGConfig("nag", **{"lr": [0.1]} | options), params)


def trajectory(start, grads, momentum, weight_decay, dtype):
    p, velocity, before = start.astype(dtype), np.zeros_like(start, dtype), 0.1
    for t, g in enumerate(grads, 1):
        lr = 0.1 / t
        p = p * dtype(1 - lr * weight_decay)
        p = p + dtype(momentum * momentum * lr / before) * velocity - dtype((1 + momentum) * lr) * g.astype(dtype)
        velocity = dtype(momentum * lr / before) * velocity - dtype(lr) * g.astype(dtype)
        before = lr
    return p


@pytest.mark.parametrize("momentum, weight_decay", [(0.99, 0.0), (0.9, 0.1), (0.0, 0.0)])
def test_two_hundred_updates_against_float64(momentum, weight_decay):
    assert_updates_follow(
        lambda params: nag_of(params, momentum=momentum, weight_decay=weight_decay),
        0.1,
        lambda start, grads, dtype: trajectory(start, grads, momentum, weight_decay, dtype),
    )


def test_it_is_torchs_nesterov_where_the_rate_stays():
    # torch keeps the velocity in units of the gradient, and the parameter without the last lookahead.
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    ours, theirs = nag_of([p], momentum=0.9), torch.optim.SGD([q], lr=0.1, momentum=0.9, nesterov=True)
    for t in range(20):
        p.grad = torch.full((3,), float(t))
        q.grad = torch.full((3,), float(t))
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q)


def test_half_parameters_are_updated_in_fp32():
    p, q = nn.Parameter(torch.randn(100).bfloat16()), None
    q = nn.Parameter(p.detach().float())
    ours, other = nag_of([p]), nag_of([q])
    for x, optimizer in ((p, ours), (q, other)):
        x.grad = torch.ones_like(x)
        optimizer.step()
    assert torch.equal(p, q.bfloat16())
    assert ours.optimizer.state[p]["momentum_buffer"].dtype == torch.float32


def test_state_goes_on_where_it_was():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    a, b = nag_of([p]), nag_of([q], lr=[7.0])
    p.grad = torch.tensor([1.0, 2.0, 3.0])
    a.step()
    q.data.copy_(p.data)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for parameter, optimizer in ((p, a), (q, b)):
        optimizer.set_lr(0.05)
        parameter.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("name, flag", [("momentum", "--momentum"), ("weight_decay", "--weight-decay")])
def test_settings_that_cannot_be(name, flag):
    with pytest.raises(ConfigError, match=f"{flag} -1: cannot be negative"):
        nag_of([nn.Parameter(torch.zeros(1))], **{name: -1.0})


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="nag does not take sparse gradients"):
        nag_of(embedding.parameters()).step()
