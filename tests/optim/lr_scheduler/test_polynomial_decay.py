from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import nn

from pyseq.config.config import config_from_args
from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.lr_scheduler import build_lr_scheduler


def polynomial(**options):
    optimizer = build_optimizer(Namespace(optimizer="sgd", lr=[9.0]), [nn.Parameter(torch.zeros(1))])
    return build_lr_scheduler(Namespace(lr_scheduler="polynomial_decay", **{"lr": [0.5]} | options), optimizer)


def formula(n, peak, warmup, total, end, power):
    if warmup and n <= warmup:
        return peak * n / warmup
    if n >= total:
        return end
    return (peak - end) * (1 - (n - warmup) / (total - warmup)) ** power + end


@pytest.mark.parametrize("warmup", [0, 20])
@pytest.mark.parametrize("end, power", [(0.0, 1.0), (0.01, 1.0), (0.01, 2.5)])
def test_against_the_formula(warmup, end, power):
    scheduler = polynomial(warmup_updates=warmup, total_num_update=100, end_learning_rate=end, power=power)
    assert scheduler.optimizer.get_lr() == (0.5 / 20 if warmup else 0.5)
    scheduler.step_begin_epoch(1)
    for n in range(120):
        assert scheduler.step_update(n) == pytest.approx(formula(n, 0.5, warmup, 100, end, power), rel=1e-14)


def test_several_rates_count_from_the_second():
    scheduler = polynomial(lr=[0.5, 0.4, 0.2], total_num_update=100)
    rates = []
    for epoch in (1, 2, 3):
        scheduler.step_begin_epoch(epoch)
        rates.append(scheduler.step_update(50))
    assert rates == pytest.approx([0.2, 0.1, 0.1], rel=1e-14)


def test_annealing_starts_each_epoch_from_where_the_rate_is():
    scheduler = polynomial(total_num_update=100, force_anneal=2)
    scheduler.step_begin_epoch(1)
    assert scheduler.step_update(50) == 0.25
    scheduler.step_begin_epoch(2)
    assert scheduler.step_update(60) == pytest.approx(0.25 * 0.4, rel=1e-14)


def test_a_resumed_run_anneals_as_the_first_would_have():
    first, resumed = (polynomial(total_num_update=100, force_anneal=2) for _ in range(2))
    first.step_begin_epoch(1)
    first.step_update(50)
    first.step_begin_epoch(2)
    resumed.optimizer.set_lr(first.step_update(60))
    resumed.load_state_dict(first.state_dict())
    resumed.step_begin_epoch(2)
    assert resumed.step_update(70) == first.step_update(70)


def test_the_decay_lasts_for_the_run_by_default():
    cfg = config_from_args(Namespace(lr_scheduler="polynomial_decay", lr=[0.5], max_update=40))
    optimizer = build_optimizer(Namespace(optimizer="sgd", lr=[9.0]), [nn.Parameter(torch.zeros(1))])
    assert build_lr_scheduler(cfg.lr_scheduler, optimizer).step_update(10) == 0.375


def test_a_decay_of_unknown_length_is_refused():
    with pytest.raises(ConfigError, match="give --total-num-update .or --max-update."):
        polynomial()
    with pytest.raises(ConfigError, match="give --total-num-update"):
        polynomial(total_num_update=0)


@pytest.mark.parametrize("name", ["warmup_updates", "end_learning_rate"])
def test_negative_settings(name):
    with pytest.raises(ConfigError, match="cannot be negative"):
        polynomial(total_num_update=10, **{name: -1})
