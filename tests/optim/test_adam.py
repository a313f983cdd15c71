from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from pyseq.errors import CheckpointError, ConfigError
from pyseq.optim import build_optimizer
from pyseq.optim.adam import AdamConfig, parse_betas

# A matrix, a vector, a scalar, an empty tensor.
SHAPES = [(17, 5), (33,), (), (0, 3)]


def adam_of(params, **options):
    return build_optimizer(AdamConfig("adam", **{"lr": [0.01], "adam_betas": "(0.9, 0.98)"} | options), params)


def step_of(p, m, v, g, t, lr, betas, eps, weight_decay, dtype=np.float64):
    """One update, element by element as the documentation states it; ``dtype`` is that of the arithmetic."""
    p, m, v, g = (np.asarray(x, dtype) for x in (p, m, v, g))
    b1, b2 = (dtype(b) for b in betas)
    m = b1 * m + dtype(1 - betas[0]) * g
    v = b2 * v + dtype(1 - betas[1]) * g * g
    p = p - dtype(lr * weight_decay) * p
    p = p - dtype(lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)) * (m / (np.sqrt(v) + dtype(eps)))
    return p, m, v


def trajectory(start, grads, dtype, lr, betas, eps, weight_decay):
    p, m, v = start.astype(dtype), np.zeros_like(start, dtype), np.zeros_like(start, dtype)
    for t, g in enumerate(grads, 1):
        p, m, v = step_of(p, m, v, g, t, lr(t), betas, eps, weight_decay, dtype)
    return p, m, v


@pytest.mark.parametrize("eps, weight_decay", [(1e-8, 0.0), (1e-3, 0.1)])
def test_two_hundred_updates_against_float64(eps, weight_decay):
    rng = np.random.default_rng(0)
    starts = [np.asarray(rng.normal(size=s), np.float32) for s in SHAPES]
    # Gradients from 1e-6 to 10: those below eps and those above it.
    sizes = 10.0 ** rng.uniform(-6, 1, 200)
    grads = [[np.asarray(size * rng.normal(size=s), np.float32) for s in SHAPES] for size in sizes]
    params = [nn.Parameter(torch.from_numpy(s.copy())) for s in starts]
    optimizer = adam_of(params, adam_eps=eps, weight_decay=weight_decay)
    for t, step in enumerate(grads, 1):
        optimizer.set_lr(0.01 / t)
        for p, g in zip(params, step):
            p.grad = torch.from_numpy(g)
        optimizer.step()
    for i, p in enumerate(params):
        settings = (lambda t: 0.01 / t, (0.9, 0.98), eps, weight_decay)
        exact = trajectory(starts[i], [g[i] for g in grads], np.float64, *settings)
        plain = trajectory(starts[i], [g[i] for g in grads], np.float32, *settings)
        state = optimizer.optimizer.state[p]
        for ours, oracle, fp32 in zip((p.detach(), state["exp_avg"], state["exp_avg_sq"]), exact, plain):
            error = np.abs(ours.numpy() - oracle).max(initial=0)
            assert error <= 2 * np.abs(fp32 - oracle).max(initial=0) + 1e-12
        assert state["step"] == 200


def test_epsilon_is_added_to_the_uncorrected_root():
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = adam_of([p], adam_eps=1.0, lr=[1.0], adam_betas="(0.5, 0.75)")
    p.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step()
    # m = 1, v = 1: lr sqrt(1/4) / (1/2) * 1 / (1 + 1); a corrected root would give 2 / 3.
    assert p.item() == pytest.approx(-0.5, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_parameters_are_updated_in_fp32_and_rounded_once(dtype):
    rng = np.random.default_rng(1)
    p = nn.Parameter(torch.from_numpy(rng.normal(size=(50, 40))).to(dtype))
    optimizer = adam_of([p], weight_decay=0.1)
    m = v = np.zeros((50, 40))
    for t in range(1, 21):
        before = p.detach().double().numpy()
        p.grad = torch.from_numpy(rng.normal(size=(50, 40))).to(dtype)
        exact, m, v = step_of(before, m, v, p.grad.double().numpy(), t, 0.01, (0.9, 0.98), 1e-8, 0.1)
        optimizer.step()
        rounded = torch.from_numpy(exact).to(dtype)
        # An fp32 result may lie on the other side of the middle between two halves, but seldom does.
        assert (p.detach() != rounded).float().mean().item() < 0.01
        torch.testing.assert_close(p.detach(), rounded, rtol=torch.finfo(dtype).eps, atol=1e-7)
    state = optimizer.optimizer.state[p]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32
    np.testing.assert_allclose(state["exp_avg_sq"].numpy(), v, rtol=1e-5)
    np.testing.assert_allclose(state["exp_avg"].numpy(), m, rtol=1e-4, atol=1e-7)


def test_each_parameter_counts_its_own_steps():
    early, late = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer = adam_of([early, late])
    for t in range(1, 6):
        early.grad = torch.full((3,), 2.0)
        late.grad = torch.full((3,), 2.0) if t >= 4 else None
        optimizer.step()
        if t == 3:
            assert torch.equal(late, torch.zeros(3)) and late not in optimizer.optimizer.state
    alone = nn.Parameter(torch.zeros(3))
    other = adam_of([alone])
    for _ in range(2):
        alone.grad = torch.full((3,), 2.0)
        other.step()
    assert torch.equal(late, alone)
    assert [optimizer.optimizer.state[p]["step"] for p in (early, late)] == [5, 2]


def test_no_value_is_read_on_the_host():
    p = nn.Parameter(torch.zeros(4, 4, device="meta"))  # whose values cannot be read
    p.grad = torch.ones(4, 4, device="meta")
    adam_of([p], weight_decay=0.1).step()


def test_state_dict_has_the_form_of_the_reference_checkpoint(reference):
    saved = torch.load(reference / "checkpoints" / "plain_update20.pt", weights_only=False)["last_optimizer_state"]
    params = [nn.Parameter(torch.zeros_like(saved["state"][i]["exp_avg"])) for i in saved["param_groups"][0]["params"]]
    optimizer = adam_of(params, adam_betas="(0.9,0.98)", lr=[5e-5])
    fresh = optimizer.state_dict()
    assert list(fresh) == list(saved)
    assert list(fresh["param_groups"][0].items()) == list(saved["param_groups"][0].items())
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for own, their in zip(optimizer.state_dict()["state"].items(), saved["state"].items()):
        assert own[0] == their[0]
        assert [(k, type(v)) for k, v in own[1].items()] == [(k, type(v)) for k, v in their[1].items()]


def test_goes_on_from_the_reference_checkpoint(reference):
    saved = torch.load(reference / "checkpoints" / "plain_update20.pt", weights_only=False)["last_optimizer_state"]
    before = copy.deepcopy(saved["state"])
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(before[i]["exp_avg"].shape)) for i in range(len(before))]
    optimizer = adam_of(params)
    optimizer.load_state_dict(saved)
    assert optimizer.get_lr() == 5e-05 and optimizer.param_groups[0]["betas"] == (0.9, 0.98)
    for p in params:
        p.grad = torch.randn(p.shape) * 0.01
    starts = [p.detach().double().numpy() for p in params]
    optimizer.step()
    for i, p in enumerate(params):
        m, v = (before[i][k].double().numpy() for k in ("exp_avg", "exp_avg_sq"))
        exact, m, v = step_of(starts[i], m, v, p.grad.numpy(), 21, 5e-5, (0.9, 0.98), 1e-8, 0.0)
        np.testing.assert_allclose(p.detach().numpy(), exact, rtol=2e-7, atol=1e-10)
        np.testing.assert_allclose(optimizer.optimizer.state[p]["exp_avg_sq"].numpy(), v, rtol=1e-6)
        assert optimizer.optimizer.state[p]["step"] == 21


def test_a_loaded_state_of_half_parameters_keeps_its_fp32_bits():
    def half():
        torch.manual_seed(0)
        return nn.Parameter(torch.randn(100).bfloat16())

    first, second = half(), half()
    a, b = adam_of([first]), adam_of([second])
    grads = torch.randn(4, 100).bfloat16()
    for g in grads[:3]:
        first.grad = g
        a.step()
    second.data.copy_(first.data)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for p, optimizer in ((first, a), (second, b)):
        p.grad = grads[3]
        optimizer.step()
    assert torch.equal(first, second)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(a.optimizer.state[first][key], b.optimizer.state[second][key])


def test_a_state_with_tensor_steps_loads():
    p = nn.Parameter(torch.ones(3))
    theirs = torch.optim.AdamW([p], lr=0.1)
    p.grad = torch.ones(3)
    theirs.step()
    optimizer = adam_of([p])
    optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.state_dict()["state"][0]["step"] == 1
    optimizer.step()


def test_a_state_of_another_shape_is_refused_and_changes_nothing():
    def one(shape):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.ones(shape)
        optimizer = adam_of([p])
        optimizer.step()
        return optimizer, p

    saved = one(4)[0].state_dict()
    optimizer, p = one(3)
    with pytest.raises(CheckpointError, match=r"parameter 0 has shape \(4,\) .* and \(3,\) in the model"):
        optimizer.load_state_dict(saved)
    assert optimizer.optimizer.state[p]["exp_avg"].shape == (3,)


def test_the_closure_is_called_with_gradients_on():
    p = nn.Parameter(torch.ones(1))
    optimizer = adam_of([p])

    def closure():
        loss = (p * p).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert p.item() < 1.0


def test_supports():
    optimizer = adam_of([nn.Parameter(torch.zeros(1))])
    assert optimizer.supports_memory_efficient_fp16 and optimizer.supports_flat_params
    assert optimizer.supports_step_with_factor
    assert not optimizer.supports_step_with_scale and not optimizer.supports_groups


@pytest.mark.parametrize("value", ["(0.9, 0.98)", "[0.9, 0.98]", "0.9,0.98", (0.9, 0.98), [0.9, 0.98]])
def test_betas_as_text_or_numbers(value):
    assert parse_betas(value) == (0.9, 0.98)


@pytest.mark.parametrize(
    "value", ["0.9", "(0.9, 0.98, 0.99)", "(0.9, 1.0)", "(-0.1, 0.9)", "(a, b)", "(0.9,", (math.nan, 0.9)]
)
def test_betas_that_cannot_be(value):
    with pytest.raises(ConfigError, match=r"--adam-betas .*two numbers in \[0, 1\)"):
        parse_betas(value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"adam_eps": -1e-8}, "--adam-eps"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"fp16_adam_stats": True}, "--fp16-adam-stats is not supported"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        adam_of([nn.Parameter(torch.zeros(1))], **options)


def test_amsgrad_may_come_by_override():
    p = nn.Parameter(torch.zeros(1))
    optimizer = adam_of([p], lr=[1.0], adam_betas="(0.0, 0.5)", adam_eps=0.0)
    p.grad = torch.tensor([1.0])
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict(), {"amsgrad": True})
    for grad, largest in ((2.0, 2.25), (0.0, 2.25)):  # v = (0.5 + 4) / 2, then half of that
        p.grad = torch.tensor([grad])
        optimizer.step()
        assert optimizer.optimizer.state[p]["max_exp_avg_sq"].item() == largest


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="sparse"):
        adam_of(embedding.parameters()).step()
