from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import nn

from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.lr_scheduler import build_lr_scheduler


def fixed(**options):
    optimizer = build_optimizer(Namespace(optimizer="sgd", lr=[9.0]), [nn.Parameter(torch.zeros(1))])
    return build_lr_scheduler(Namespace(lr_scheduler="fixed", **options), optimizer)


def rate(scheduler, epoch, num_updates):
    scheduler.step_begin_epoch(epoch)
    return scheduler.step_update(num_updates)


def test_each_epoch_has_its_rate_and_the_last_one_stays():
    scheduler = fixed(lr=[0.4, 0.2, 0.1])
    assert [rate(scheduler, epoch, 10 * epoch) for epoch in (1, 2, 3, 4, 9)] == [0.4, 0.2, 0.1, 0.1, 0.1]


def test_annealing_shrinks_from_its_epoch_on():
    scheduler = fixed(lr=[0.4, 0.2], force_anneal=3, lr_shrink=0.5)
    expected = [0.4, 0.2, 0.2 * 0.5**1, 0.2 * 0.5**2, 0.2 * 0.5**3]
    assert [rate(scheduler, epoch, epoch) for epoch in range(1, 6)] == pytest.approx(expected, rel=1e-15)


def test_warm_up_is_linear_and_ends_at_the_rate():
    scheduler = fixed(lr=[0.3], warmup_updates=4)
    expected = [0.3 * 1 / 4, 0.3 * 2 / 4, 0.3 * 3 / 4, 0.3, 0.3, 0.3]
    assert [rate(scheduler, 1, n) for n in range(6)] == pytest.approx(expected, rel=1e-15)


def test_a_new_epoch_begins_at_its_own_rate():
    scheduler = fixed(lr=[0.4, 0.2], warmup_updates=2)
    assert rate(scheduler, 1, 5) == 0.4
    assert scheduler.step_begin_epoch(2) == 0.2


def test_state_holds_the_rate():
    scheduler, other = fixed(lr=[0.4, 0.2]), fixed(lr=[0.4, 0.2])
    rate(scheduler, 2, 5)
    assert scheduler.state_dict() == {"best": None, "lr": 0.2}
    other.load_state_dict(scheduler.state_dict())
    assert other.step_update(5) == 0.2
    other.load_state_dict({"best": 1.0})
    assert other.step_update(5) == 0.2 and other.best == 1.0


def test_negative_warm_up():
    with pytest.raises(ConfigError, match="--warmup-updates -1: cannot be negative"):
        fixed(lr=[0.4], warmup_updates=-1)
