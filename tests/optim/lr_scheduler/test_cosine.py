from __future__ import annotations

import math
from argparse import Namespace
from fractions import Fraction

import pytest
import torch
from torch import nn

from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.lr_scheduler import build_lr_scheduler


def cosine(**options):
    optimizer = build_optimizer(Namespace(optimizer="sgd", lr=[9.0]), [nn.Parameter(torch.zeros(1))])
    return build_lr_scheduler(Namespace(lr_scheduler="cosine", **{"lr": [0.5]} | options), optimizer)


def period_of(n, first, growth):
    """Index of the period that update ``n`` is in and the part of it that is over, in exact arithmetic."""
    length, index = Fraction(first), 0
    while n >= length:
        n, index, length = n - length, index + 1, length * Fraction(growth)
    return index, n / length


@pytest.mark.parametrize("t_mult", [1.0, 2.0, 1.5, 3.0])
@pytest.mark.parametrize("warmup, initial, low", [(0, -1.0, 0.0), (13, -1.0, 0.01), (13, 0.2, 0.01)])
def test_against_the_formula(t_mult, warmup, initial, low):
    scheduler = cosine(
        lr_period_updates=10.0, t_mult=t_mult, warmup_updates=warmup, warmup_init_lr=initial, min_lr=low, lr_shrink=0.3
    )
    start = low if initial < 0 else initial
    assert scheduler.optimizer.get_lr() == start
    for n in range(500):
        if n < warmup:
            expected = start + (0.5 - start) * n / warmup
        else:
            index, over = period_of(n - warmup, 10, t_mult)
            expected = 0.3**index * (low + (0.5 - low) / 2 * (1 + math.cos(math.pi * over)))
        assert scheduler.step_update(n) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("t_mult", [5.0, 10.0])
def test_a_period_begins_at_its_top(t_mult):
    # Where the index comes from a logarithm, log(1000) / log(10) is below 3 and log(125) / log(5) above it.
    scheduler, begin = cosine(lr_period_updates=4.0, t_mult=t_mult, lr_shrink=0.5), 0
    for index in range(5):
        assert scheduler.step_update(begin) == 0.5 * 0.5**index
        begin += int(4 * t_mult**index)


def test_the_period_is_the_rest_of_the_run_by_default():
    scheduler = cosine(max_update=110, warmup_updates=10, min_lr=0.1)
    assert scheduler.step_update(10) == 0.5
    assert scheduler.step_update(60) == pytest.approx(0.3, rel=1e-14)
    assert scheduler.step_update(109) == pytest.approx(0.1 + 0.2 * (1 + math.cos(math.pi * 0.99)), rel=1e-14)


def test_shrinking_periods_end_and_the_rate_stays():
    scheduler = cosine(lr_period_updates=8.0, t_mult=0.5, lr_shrink=0.5, min_lr=0.1)
    assert scheduler.step_update(8) == 0.25
    rates = [scheduler.step_update(n) for n in range(16, 1000)]
    assert set(rates) == {rates[0]} and 0 < rates[0] < 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "--lr-period-updates, or a --max-update"),
        ({"max_update": 10, "warmup_updates": 10}, "--max-update is 10, --warmup-updates 10"),
        ({"max_update": 10, "min_lr": 0.5}, "--min-lr 0.5 must be below --lr 0.5"),
        ({"max_update": 10, "t_mult": 0.0}, "--t-mult 0 must be positive"),
        ({"max_update": 10, "warmup_updates": -1}, "--warmup-updates -1: cannot be negative"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        cosine(**options)
