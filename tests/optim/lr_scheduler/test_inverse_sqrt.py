from __future__ import annotations

import json
import math
from argparse import Namespace

import pytest
import torch
from torch import nn

from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.lr_scheduler import build_lr_scheduler


def inverse_sqrt(**options):
    optimizer = build_optimizer(Namespace(optimizer="sgd", lr=[9.0]), [nn.Parameter(torch.zeros(1))])
    return build_lr_scheduler(Namespace(lr_scheduler="inverse_sqrt", **options), optimizer)


@pytest.mark.parametrize("initial", [-1.0, 0.0, 1e-7, 0.1])
def test_against_the_formula(initial):
    scheduler = inverse_sqrt(lr=[0.005], warmup_updates=7, warmup_init_lr=initial)
    start = max(initial, 0.0)
    assert scheduler.optimizer.get_lr() == start
    for n in range(300):
        expected = start + (0.005 - start) * n / 7 if n < 7 else 0.005 * math.sqrt(7 / n)
        assert scheduler.step_update(n) == pytest.approx(expected, rel=1e-14)


def test_warm_up_is_4000_updates_by_default():
    assert inverse_sqrt(lr=[0.5]).step_update(1000) == pytest.approx(0.125, rel=1e-14)


@pytest.mark.parametrize("run, warmup", [("plain", 2000), ("clip1_warmup20", 20), ("clip1_warmup20_uf2", 20)])
def test_rates_of_the_reference_runs_are_equal(reference, run, warmup):
    updates = json.loads((reference / "runs" / f"{run}.json").read_text())["updates"]
    scheduler = inverse_sqrt(lr=[0.005], warmup_updates=warmup)
    assert [scheduler.step_update(u["update"] - 1) for u in updates] == [u["lr_used"] for u in updates]


def test_rate_of_the_reference_checkpoint_is_equal(reference):
    state = torch.load(reference / "checkpoints" / "update372.pt", weights_only=False)
    scheduler = inverse_sqrt(lr=[0.005], warmup_updates=200)
    scheduler.load_state_dict(state["optimizer_history"][-1]["lr_scheduler_state"])
    assert scheduler.step_update(372) == state["last_optimizer_state"]["param_groups"][0]["lr"]


@pytest.mark.parametrize("warmup", [0, -3])
def test_without_warm_up_there_is_no_scale(warmup):
    with pytest.raises(ConfigError, match=f"--warmup-updates {warmup}: inverse_sqrt needs at least 1"):
        inverse_sqrt(lr=[0.5], warmup_updates=warmup)
