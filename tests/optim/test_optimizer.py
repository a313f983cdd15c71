from __future__ import annotations

import pytest
import torch
from torch import nn

from pyseq.errors import CheckpointError, ConfigError
from pyseq.optim import Optimizer, build_optimizer
from pyseq.optim.adam import AdamConfig
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


def adam_of(params, **options):
    return build_optimizer(AdamConfig("adam", lr=[0.1], **options), params)


def with_grads(*grads):
    params = [nn.Parameter(torch.arange(3.0)) for _ in grads]
    for p, g in zip(params, grads):
        p.grad = torch.tensor(g)
    return params


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("factor", [0.125, torch.tensor(0.125), torch.tensor(0.125, dtype=torch.float64)])
def test_averaging_and_clipping_leave_the_gradients_to_an_update_that_applies_the_factor(factor, max_norm):
    grads = [3.0, 4.0, 0.0], [0.0, -12.0, 1.0]
    params, plain = with_grads(*grads), with_grads(*grads)
    folding, rewriting = adam_of(params, adam_eps=1.0), adam_of(plain, adam_eps=1.0)
    folding.multiply_grads(factor)
    norm = folding.clip_grad_norm(max_norm)
    Plugin(plain).multiply_grads(factor)
    expected = Plugin(plain).clip_grad_norm(max_norm)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
    assert [p.grad.tolist() for p in params] == list(grads)
    folding.step()
    rewriting.step()
    for p, q in zip(params, plain):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_the_factor_belongs_to_the_gradients_until_they_are_dropped():
    (p,) = with_grads([4.0, 0.0, 0.0])
    optimizer = adam_of([p])
    optimizer.multiply_grads(0.5)
    optimizer.step(scale=2.0)
    assert optimizer.clip_grad_norm(0.0).item() == 1.0
    optimizer.backward(3 * p[0])  # what is added is not multiplied
    assert p.grad.tolist() == [4.0, 0.0, 0.0]
    optimizer.multiply_grads(0.5)
    optimizer.apply_factor()
    optimizer.apply_factor()
    assert p.grad.tolist() == [2.0, 0.0, 0.0]
    optimizer.multiply_grads(0.5)
    optimizer.zero_grad()
    p.grad = torch.tensor([4.0, 0.0, 0.0])
    assert optimizer.clip_grad_norm(0.0).item() == 4.0


def test_experts_and_other_processes_count_for_the_norm_that_is_left_to_the_update():
    p, expert = with_grads([3.0, 4.0, 0.0], [100.0, 0.0, 0.0])
    expert.expert = True
    optimizer = adam_of([p, expert], adam_betas="(0.0, 0.0)")
    assert optimizer.clip_grad_norm(1.0, aggregate_norm_fn=lambda local: 2 * local).item() == 10.0
    optimizer.step()
    moments = [optimizer.optimizer.state[x]["exp_avg"].tolist() for x in (p, expert)]
    assert moments == [pytest.approx([0.3, 0.4, 0.0]), pytest.approx([10.0, 0.0, 0.0])]


def test_a_norm_that_is_not_finite_leaves_the_parameters():
    (p,) = with_grads([1.0, float("nan"), 0.0])
    optimizer = adam_of([p])
    assert optimizer.clip_grad_norm(1.0).isnan()
    optimizer.step()
    assert p.tolist() == [0.0, 1.0, 2.0]


def test_step_divides_by_scale_itself_where_the_torch_optimizer_cannot():
    p = parameter(0.0, grad=8.0)
    optimizer = Plugin([p])
    optimizer.step(scale=4.0)
    assert p.item() == -2.0
    assert optimizer.optimizer.options == {}


def test_step_divides_by_scale_where_the_torch_optimizer_takes_a_factor():
    p = parameter(0.0, grad=8.0)
    optimizer = Plugin([p], supports_step_with_factor=True)
    optimizer.multiply_grads(0.5)
    optimizer.step(scale=4.0)
    assert optimizer.optimizer.options == {"factor": 0.125, "found_inf": None}


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
