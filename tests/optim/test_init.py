from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import nn

from pyseq.errors import ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.adam import Adam, AdamConfig
from pyseq.optim.sgd import SGD


def parameters(*trained):
    return [nn.Parameter(torch.zeros(i + 1), requires_grad=t) for i, t in enumerate(trained)]


def test_a_flat_namespace_chooses_and_configures():
    args = Namespace(optimizer="adam", lr=[0.5, 0.1], adam_betas="(0.9,0.98)", weight_decay=0.01, unrelated=1)
    optimizer = build_optimizer(args, parameters(True))
    assert isinstance(optimizer, Adam)
    assert optimizer.optimizer_config == {"lr": 0.5, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.01}


def test_a_config_node_chooses_by_its_name():
    assert isinstance(build_optimizer(AdamConfig("adam", lr=[0.5]), parameters(True)), Adam)


def test_parameters_without_gradient_are_left_out():
    params = parameters(True, False, True)
    optimizer = build_optimizer(Namespace(optimizer="sgd", lr=[1.0]), params)
    assert isinstance(optimizer, SGD)
    assert [id(p) for p in optimizer.params] == [id(params[0]), id(params[2])]


def test_parameters_by_name_and_in_groups():
    a, b, c, d = parameters(True, False, True, True)
    args = Namespace(optimizer="sgd", lr=[1.0])
    assert [id(p) for p in build_optimizer(args, [{"a": a, "b": b}, {"c": c}]).params] == [id(a), id(c)]
    groups = build_optimizer(args, [{"params": [a, b], "momentum": 0.5}, {"params": d}, {"params": [b]}]).param_groups
    assert [(len(g["params"]), g["momentum"]) for g in groups] == [(1, 0.5), (1, 0.0)]


def test_nothing_to_train():
    with pytest.raises(ConfigError, match="no parameter requires a gradient"):
        build_optimizer(Namespace(optimizer="sgd", lr=[1.0]), parameters(False))


@pytest.mark.parametrize("choice, message", [(None, "--optimizer is required"), ("adm", "'adm'.*'adam'")])
def test_no_optimizer_or_an_unknown_one(choice, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(Namespace(optimizer=choice, lr=[1.0]), parameters(True))
