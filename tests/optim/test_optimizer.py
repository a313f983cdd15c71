from __future__ import annotations

import pytest
import torch
from torch import nn

from pyseq.errors import CheckpointError, ConfigError
from pyseq.optim import Optimizer, build_optimizer
from pyseq.optim.optimizer import learning_rates
from pyseq.optim.sgd import SGDConfig


class Recorder(torch.optim.SGD):
    """A torch optimizer that says what its step was given."""

    def step(self, closure=None, **options):
        self.options = options
        return super().step(closure)


class Plugin(Optimizer):
    def __init__(self, params, lr=1.0, **attributes):
        super().__init__(cfg=None)
        self._optimizer = Recorder(params, lr=lr)
        for name, value in attributes.items():
            setattr(self._optimizer, name, value)


def parameter(value=0.0, grad=None):
    p = nn.Parameter(torch.tensor([value]))
    p.grad = None if grad is None else torch.tensor([grad])
    return p


def test_learning_rate_is_that_of_every_group():
    a, b = parameter(), parameter()
    optimizer = Plugin([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.1)
    assert optimizer.get_lr() == 0.5
    optimizer.set_lr(0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [id(p) for p in optimizer.params] == [id(a), id(b)]


def test_backward_adds_to_the_gradients_and_zero_grad_drops_them():
    p = parameter(2.0)
    optimizer = Plugin([p])
    optimizer.backward((3 * p).sum())
    optimizer.backward((p * p).sum())
    assert p.grad.item() == 7.0
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize("factor", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
def test_multiply_grads_takes_a_number_or_a_tensor(factor):
    grads = [torch.randn(3, 4), torch.randn(5).bfloat16(), torch.randn(()), torch.randn(2, 2).t()]
    params = [nn.Parameter(torch.zeros_like(g)) for g in grads] + [parameter()]
    for p, g in zip(params, grads):
        p.grad = g.clone()
    Plugin(params).multiply_grads(factor)
    for p, g in zip(params, grads):
        assert p.grad.dtype == g.dtype
        assert torch.equal(p.grad, g * 0.5)
    assert params[-1].grad is None


def test_step_divides_by_scale_itself_where_the_torch_optimizer_cannot():
    p = parameter(0.0, grad=8.0)
    optimizer = Plugin([p])
    optimizer.step(scale=4.0)
    assert p.item() == -2.0
    assert optimizer.optimizer.options == {}


def test_step_hands_on_scale_and_groups_where_the_torch_optimizer_takes_them():
    p = parameter(0.0, grad=8.0)
    optimizer = Plugin([p], supports_step_with_scale=True, supports_groups=True)
    optimizer.step(scale=4.0, groups=["a"])
    assert p.grad.item() == 8.0
    assert optimizer.optimizer.options == {"scale": 4.0, "groups": ["a"]}


@pytest.mark.parametrize("name", ["memory_efficient_fp16", "step_with_scale", "groups", "flat_params"])
def test_supports_is_what_the_torch_optimizer_says(name):
    attribute = f"supports_{name}"
    assert getattr(Plugin([parameter()]), attribute) is False
    assert getattr(Plugin([parameter()], **{attribute: True}), attribute) is True


def test_all_reduce_grads_is_the_modules_affair():
    module, calls = nn.Linear(1, 1), []
    optimizer = Plugin(module.parameters())
    optimizer.all_reduce_grads(module)
    module.all_reduce_grads = lambda: calls.append(1)
    optimizer.all_reduce_grads(module)
    assert calls == [1]


def test_overrides_win_over_the_loaded_settings():
    saved = Plugin([parameter()], lr=0.5).state_dict()
    optimizer = Plugin([parameter()], lr=0.1)
    optimizer.load_state_dict(saved)
    assert optimizer.get_lr() == 0.5
    optimizer.load_state_dict(saved, {"lr": 0.2, "momentum": 0.9})
    assert (optimizer.get_lr(), optimizer.param_groups[0]["momentum"]) == (0.2, 0.9)


def test_state_of_another_model_is_refused_and_changes_nothing():
    saved = Plugin([parameter(), parameter()], lr=0.5).state_dict()
    optimizer = Plugin([parameter()], lr=0.1)
    with pytest.raises(CheckpointError, match="for 2 tensors, but the model trains 1 tensors.*--reset-optimizer"):
        optimizer.load_state_dict(saved)
    assert optimizer.get_lr() == 0.1


@pytest.mark.parametrize("lr, rates", [([0.5, 0.1], [0.5, 0.1]), (0.5, [0.5]), ((1,), [1.0])])
def test_learning_rates(lr, rates):
    assert learning_rates(SGDConfig(lr=lr)) == rates


@pytest.mark.parametrize("lr, message", [(None, "--lr is missing"), ([], "--lr is missing"), ([-1.0], "negative")])
def test_learning_rates_that_cannot_be(lr, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(SGDConfig("sgd", lr=lr), [parameter()])
