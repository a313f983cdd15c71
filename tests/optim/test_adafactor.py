from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.adafactor import AdafactorConfig

# A matrix, a stack of matrices, a vector, a scalar, an empty tensor.
SHAPES = [(17, 5), (3, 4, 6), (33,), (), (0, 3)]


def adafactor_of(params, **options):
    return build_optimizer(AdafactorConfig("adafactor", **{"lr": [0.01]} | options), params)


def rms(x):
    return math.sqrt(float((x.astype(np.float64) ** 2).mean()))


def trajectory(p, grads, dtype, beta1=None, weight_decay=0.0, scale_parameter=False, relative_step=False, warmup=False):
    p = p.astype(dtype)
    rows = columns = vector = average = 0.0
    for t, g in enumerate(grads, 1):
        g = g.astype(dtype)
        lr = 0.01 / t
        if relative_step:
            lr = min(1e-6 * t if warmup else 1e-2, 1 / math.sqrt(t))
        if scale_parameter:
            lr *= max(1e-3, rms(p))
        keep = 1 - t**-0.8
        square = g * g + dtype(1e-30)
        if g.ndim >= 2:
            rows = dtype(keep) * rows + dtype(1 - keep) * square.mean(-1, keepdims=True)
            columns = dtype(keep) * columns + dtype(1 - keep) * square.mean(-2, keepdims=True)
            u = g / np.sqrt(rows / rows.mean(-2, keepdims=True)) / np.sqrt(columns)
        else:
            vector = dtype(keep) * vector + dtype(1 - keep) * square
            u = g / np.sqrt(vector)
        u = u * dtype(lr / max(1.0, rms(u) / 1.0))
        if beta1 is not None:
            average = dtype(beta1) * average + dtype(1 - beta1) * u
            u = average
        p = p - dtype(lr * weight_decay) * p - u
    return p


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta1": 0.9, "weight_decay": 0.1},
        {"scale_parameter": True},
        {"scale_parameter": True, "relative_step": True, "warmup_init": True},
    ],
)
def test_a_hundred_updates_against_float64(options):
    rng = np.random.default_rng(0)
    starts = [np.asarray(rng.normal(size=s), np.float32) for s in SHAPES]
    steps = [[np.asarray(10.0 ** rng.uniform(-2, 1) * rng.normal(size=s), np.float32) for s in SHAPES]
             for _ in range(100)]  # fmt: skip
    params = [nn.Parameter(torch.from_numpy(s.copy())) for s in starts]
    optimizer = adafactor_of(params, **options)
    for t, grads in enumerate(steps, 1):
        optimizer.set_lr(0.01 / t)
        for p, g in zip(params, grads):
            p.grad = torch.from_numpy(g.copy())
        optimizer.step()
    settings = {"warmup" if k == "warmup_init" else k: v for k, v in options.items()}
    for i, p in enumerate(params[:-1]):
        grads = [step[i] for step in steps]
        exact, fp32 = (trajectory(starts[i], grads, dtype, **settings) for dtype in (np.float64, np.float32))
        error = np.abs(p.detach().numpy() - exact).max()
        assert error <= 2 * np.abs(fp32 - exact).max() + 2e-7


def test_the_state_of_a_matrix_is_a_row_and_a_column():
    p = nn.Parameter(torch.randn(30, 20))
    p.grad = torch.randn(30, 20)
    optimizer = adafactor_of([p])
    optimizer.step()
    state = optimizer.state_dict()["state"][0]
    assert {key: tuple(value.shape) for key, value in state.items() if key != "step"} == {
        "exp_avg_sq_row": (30,), "exp_avg_sq_col": (20,)
    }  # fmt: skip


def test_state_goes_on_where_it_was():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(4, 3))
    a = adafactor_of([p], beta1=0.9)
    p.grad = torch.randn(4, 3)
    a.step()
    q = nn.Parameter(p.detach().clone())
    b = adafactor_of([q], beta1=0.9)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    grad = torch.randn(4, 3)
    for parameter, optimizer in ((p, a), (q, b)):
        parameter.grad = grad
        optimizer.step()
    assert torch.equal(p, q) and b.optimizer.state[q]["step"] == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"warmup_init": True}, "--warmup-init is a form of --relative-step"),
        ({"adafactor_eps": "(1,)"}, "--adafactor-eps"),
        ({"clip_threshold": 0.0}, "--clip-threshold"),
        ({"beta1": 1.0}, "--beta1"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        adafactor_of([nn.Parameter(torch.zeros(1))], **options)
