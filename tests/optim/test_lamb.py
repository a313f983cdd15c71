from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.lamb import LAMBConfig

SHAPES = [(17, 5), (33,), (), (0, 3)]


def lamb_of(params, **options):
    return build_optimizer(LAMBConfig("lamb", **{"lr": [0.01], "lamb_betas": "(0.9, 0.98)"} | options), params)


def trajectory(starts, steps, weight_decay, dtype):
    """All tensors together, since they are clipped by their common norm."""
    ps = [s.astype(dtype) for s in starts]
    ms, vs = [np.zeros_like(p) for p in ps], [np.zeros_like(p) for p in ps]
    for t, grads in enumerate(steps, 1):
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads))
        for i, g in enumerate(grads):
            g = g.astype(dtype) * dtype(min(1.0, 1.0 / (norm + 1e-6)))
            ms[i] = dtype(0.9) * ms[i] + dtype(0.1) * g
            vs[i] = dtype(0.98) * vs[i] + dtype(0.02) * g * g
            u = ms[i] / dtype(1 - 0.9**t) / (np.sqrt(vs[i] / dtype(1 - 0.98**t)) + dtype(1e-8))
            u = u + dtype(weight_decay) * ps[i]
            p_norm, u_norm = (np.sqrt((x.astype(np.float64) ** 2).sum()) for x in (ps[i], u))
            ps[i] = ps[i] - dtype(0.01 / t * (p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1.0)) * u
    return ps


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_two_hundred_updates_against_float64(weight_decay):
    rng = np.random.default_rng(0)
    starts = [np.asarray(rng.normal(size=s), np.float32) for s in SHAPES]
    starts[1][:] = 0  # |p| = 0: the step is not scaled
    steps = [[np.asarray(10.0 ** rng.uniform(-4, 1) * rng.normal(size=s), np.float32) for s in SHAPES]
             for _ in range(200)]  # fmt: skip
    params = [nn.Parameter(torch.from_numpy(s.copy())) for s in starts]
    optimizer = lamb_of(params, weight_decay=weight_decay)
    for t, grads in enumerate(steps, 1):
        optimizer.set_lr(0.01 / t)
        for p, g in zip(params, grads):
            p.grad = torch.from_numpy(g.copy())
        optimizer.step()
        assert all(np.array_equal(p.grad.numpy(), g) for p, g in zip(params, grads))
    exact, fp32 = (trajectory(starts, steps, weight_decay, dtype) for dtype in (np.float64, np.float32))
    for p, e, f in zip(params, exact, fp32):
        error = np.abs(p.detach().numpy() - e).max(initial=0)
        assert error <= 2 * np.abs(f - e).max(initial=0) + 1e-7


def test_state_goes_on_where_it_was():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    a, b = lamb_of([p]), lamb_of([q])
    p.grad = torch.tensor([1.0, 2.0, 3.0])
    a.step()
    q.data.copy_(p.data)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for parameter, optimizer in ((p, a), (q, b)):
        parameter.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(p, q) and b.optimizer.state[q]["step"] == 2


@pytest.mark.parametrize(
    "options, flag", [({"lamb_eps": -1.0}, "--lamb-eps"), ({"weight_decay": -1.0}, "--weight-decay"),
                      ({"lamb_betas": "(1, 0)"}, "--lamb-betas")],
)  # fmt: skip
def test_settings_that_cannot_be(options, flag):
    with pytest.raises(ConfigError, match=flag):
        lamb_of([nn.Parameter(torch.zeros(1))], **options)
