from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import nn

from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.lr_scheduler import LR_SCHEDULERS, LRScheduler, build_lr_scheduler


def sgd(lr=0.5):
    return build_optimizer(Namespace(optimizer="sgd", lr=[lr]), [nn.Parameter(torch.zeros(1))])


def test_the_base_class_leaves_the_rate_alone():
    scheduler = LRScheduler(None, sgd(0.5))
    assert scheduler.step_begin_epoch(1) == scheduler.step_update(10) == scheduler.step(1) == 0.5


def test_best_is_the_lowest_validation_loss():
    scheduler = LRScheduler(None, sgd())
    assert scheduler.state_dict() == {"best": None}
    for loss in (3.0, None, 2.0, 4.0):
        scheduler.step(1, loss)
    assert scheduler.state_dict() == {"best": 2.0}
    other = LRScheduler(None, sgd())
    other.load_state_dict(scheduler.state_dict())
    other.step(2, 2.5)
    assert other.best == 2.0


def test_the_optimizer_must_be_ours():
    with pytest.raises(ConfigError, match="must be an instance of pyseq.optim.Optimizer, not SGD"):
        LRScheduler(None, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))


def test_a_flat_namespace_chooses_and_configures():
    args = Namespace(lr_scheduler="inverse_sqrt", lr=[0.5], warmup_updates=10, unrelated=1)
    assert build_lr_scheduler(args, sgd()).step_update(40) == pytest.approx(0.25)
    assert LR_SCHEDULERS.default == "fixed"


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(ConfigError, match="'inverse_sqr'.*'inverse_sqrt'"):
        build_lr_scheduler(Namespace(lr_scheduler="inverse_sqr", lr=[0.5]), sgd())


@pytest.mark.parametrize("name", ["fixed", "inverse_sqrt", "cosine", "polynomial_decay"])
def test_every_schedule_sets_the_rate_it_returns_and_needs_one(name):
    optimizer = sgd(0.5)
    args = Namespace(lr_scheduler=name, lr=[0.25], max_update=100, total_num_update=100, warmup_updates=10)
    scheduler = build_lr_scheduler(args, optimizer)
    scheduler.step_begin_epoch(1)
    for n in range(100):
        assert scheduler.step_update(n) == optimizer.get_lr()
    assert scheduler.step(1, 3.0) == optimizer.get_lr() and scheduler.best == 3.0
    with pytest.raises(ConfigError, match="--lr is missing"):
        build_lr_scheduler(Namespace(lr_scheduler=name, lr=[], max_update=100, total_num_update=100), optimizer)


@pytest.mark.parametrize("name", ["inverse_sqrt", "cosine"])
def test_schedules_of_one_rate_refuse_several(name):
    args = Namespace(lr_scheduler=name, lr=[0.25, 0.1], max_update=100)
    with pytest.raises(ConfigError, match=f"--lr 0.25,0.1: --lr-scheduler {name} takes a single.*fixed"):
        build_lr_scheduler(args, sgd())
