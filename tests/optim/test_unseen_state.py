"""Whatever a user puts in the place of a parameter, a gradient or a state between two steps is what the next step uses.

Steps do not look where states lie as long as nobody can have had them in hand, so every way to get at them is tried.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyseq.ops import backend
from pyseq.ops.segments import AdamPlan
from pyseq.optim import FusedAdamW
from support.backends import reading_tensors_by

SHAPES = [(6, 4), (5,), (4, 3), (7,)]


@pytest.fixture(autouse=True, params=["torch", "dlpack"])
def way(request):
    with reading_tensors_by(request.param):
        yield


def made(kind, **options):
    generator = torch.Generator().manual_seed(5)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return params, kind(params, lr=0.1, **options)


def step(optimizer, params, t, idle=(), kept=False):
    """One step with gradients of its own, written where those of the step before lie if they are ``kept``."""
    generator = torch.Generator().manual_seed(t)
    for i, p in enumerate(params):
        grad = torch.randn(SHAPES[i], generator=generator).view(p.shape)
        if kept and p.grad is not None:
            p.grad.copy_(grad)
        else:
            p.grad = None if i in idle else grad
    optimizer.step()


def new_parameter_memory(optimizer, params):
    params[0].data = params[0].data * 2


def same_memory_in_another_order(optimizer, params):
    params[0].data = params[0].data.reshape(4, 6).t()


def parameters_in_another_order(optimizer, params):
    optimizer.param_groups[0]["params"].reverse()


def another_state(optimizer, params):
    optimizer.state[params[1]]["exp_avg"] = torch.full((5,), 0.5)


def a_state_moved_by_data(optimizer, params):
    for state in optimizer.state.values():
        state["exp_avg_sq"].data = state["exp_avg_sq"].data * 3


def a_state_written_to(optimizer, params):
    optimizer.state[params[2]]["exp_avg"].mul_(-2)


def a_state_written_to_by_state_dict(optimizer, params):
    optimizer.state_dict()["state"][2]["exp_avg"].mul_(-2)


def a_state_lost(optimizer, params):
    optimizer.state.pop(params[3])


def new_states(optimizer, params):
    optimizer.state = type(optimizer.state)(
        dict,
        {p: {k: v.clone() + (k != "step") for k, v in state.items()} for p, state in optimizer.state.items()},
    )


def loaded_states(optimizer, params):
    saved = optimizer.state_dict()
    saved["state"] = {i: {**state, "exp_avg": state["exp_avg"] * 4} for i, state in saved["state"].items()}
    optimizer.load_state_dict(saved)


def another_setting(optimizer, params):
    optimizer.param_groups[0].update(lr=0.3, betas=(0.5, 0.7), weight_decay=0.2)


def another_gradient(optimizer, params):
    params[1].grad = torch.zeros(5)


def a_gradient_moved_by_data(optimizer, params):
    params[1].grad.data = torch.zeros(7)[2:]


def a_gradient_in_new_memory(optimizer, params):
    storage = params[1].grad.untyped_storage()
    storage.resize_(1 << 20)  # does not fit where it was


def a_gradient_of_another_layout(optimizer, params):
    params[2].grad.data = torch.zeros(3, 4).t()


def a_gradient_lost(optimizer, params):
    params[3].grad = None


def two_parameters_swapped(optimizer, params):
    with torch.no_grad():
        other = nn.Parameter(torch.full((5,), 3.0))
    other.grad = torch.zeros(5)
    torch.utils.swap_tensors(params[1], other)


def a_parameter_with_memory_that_a_lazy_copy_has_too(optimizer, params):
    optimizer.copies = [torch._lazy_clone(params[0].detach()), params[0].detach().clone()]


CHANGES = [
    another_gradient,
    a_gradient_moved_by_data,
    a_gradient_in_new_memory,
    a_gradient_of_another_layout,
    a_gradient_lost,
    two_parameters_swapped,
    a_parameter_with_memory_that_a_lazy_copy_has_too,
    new_parameter_memory,
    same_memory_in_another_order,
    parameters_in_another_order,
    another_state,
    a_state_moved_by_data,
    a_state_written_to,
    a_state_written_to_by_state_dict,
    a_state_lost,
    new_states,
    loaded_states,
    another_setting,
]


@pytest.mark.parametrize("kept", [False, True], ids=["new gradients", "kept gradients"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_steps_counts(change, kept):
    results = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        params, optimizer = made(kind)
        for t in range(5):
            step(optimizer, params, t, kept=kept)
        change(optimizer, params)
        for t in range(5, 8):
            step(optimizer, params, t, kept=kept)
        results.append([p.detach() for p in params])
        if change is a_parameter_with_memory_that_a_lazy_copy_has_too:
            torch.testing.assert_close(*optimizer.copies, rtol=0, atol=0)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_what_was_taken_in_hand_before_the_first_step_is_still_looked_at():
    results = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        params, optimizer = made(kind)
        held = optimizer.state
        for t in range(6):
            if t == 3:
                held[params[0]]["exp_avg"] = torch.ones(6, 4)
            step(optimizer, params, t)
        results.append([p.detach() for p in params])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("idle", [[(), (1,), (1,), (), (0, 2), ()], [(1,), (1,), (1,), (), (), ()]])
def test_gradients_may_come_and_go(idle):
    results = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        params, optimizer = made(kind)
        for t, without in enumerate(idle):
            step(optimizer, params, t, without)
        results.append([p.detach() for p in params])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_the_order_of_a_gradients_memory_counts():
    results = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        params, optimizer = made(kind)
        for t in range(6):
            generator = torch.Generator().manual_seed(t)
            for p in params:
                grad = torch.randn(p.shape, generator=generator)
                p.grad = grad.t().contiguous().t() if t % 2 and grad.dim() == 2 else grad
            optimizer.step()
        results.append([p.detach() for p in params])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("from_step", [0, 1, 5])
def test_the_sign_with_which_a_gradient_is_read_counts(size, from_step):
    results = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        param, gradient = nn.Parameter(torch.ones(size)), torch.complex(torch.ones(size), torch.ones(size))
        optimizer = kind([param], lr=0.1)
        for t in range(7):
            param.grad = gradient.imag if t < from_step else gradient.conj().imag
            optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_the_sign_with_which_a_parameter_is_read_counts(size):
    results = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        numbers = torch.complex(torch.ones(size), torch.ones(size))
        param = nn.Parameter(numbers.conj().imag)
        optimizer = kind([param], lr=0.1, weight_decay=0.5)
        for t in range(4):
            param.grad = torch.full((size,), t - 0.5)
            optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_hook_that_looks_at_the_state_is_noticed():
    results = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        params, optimizer = made(kind)
        held = []
        optimizer.register_state_dict_pre_hook(lambda optimizer, held=held: held.append(optimizer.state))
        for t in range(6):
            if t == 2:
                optimizer.state_dict()
            if t == 3:
                held[0][params[0]]["exp_avg"] = torch.ones(6, 4)
            step(optimizer, params, t)
        results.append([p.detach() for p in params])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_hook_is_not_handed_the_tensors_themselves():
    params, optimizer = made(FusedAdamW)
    handed = []
    optimizer.register_state_dict_post_hook(lambda optimizer, packed: handed.append(packed))
    step(optimizer, params, 0)
    optimizer.state_dict()
    for key, value in handed[0]["state"][0].items():
        assert value is not optimizer.state[params[0]][key], key


def test_memory_taken_away_is_an_error_and_not_written_to():
    params, optimizer = made(FusedAdamW)
    for t in range(2):
        step(optimizer, params, t)
    optimizer.state_dict()["state"][0]["exp_avg"].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="exp_avg"):
        step(optimizer, params, 2)


def followed_steps(optimizer, params, monkeypatch, idle=()):
    """Of the next three steps, how many do not look where states lie."""
    looks = []
    update = AdamPlan.update
    monkeypatch.setattr(AdamPlan, "update", lambda plan, columns: looks.append(0) or update(plan, columns))
    for t in range(3):
        step(optimizer, params, t, idle)
    monkeypatch.undo()
    return 3 - len(looks)


def test_states_are_looked_at_only_where_someone_may_have_moved_them(monkeypatch):
    # That is what makes a step over thousands of small tensors fast; a state dict in between does not end it.
    params, optimizer = made(FusedAdamW)
    assert followed_steps(optimizer, params, monkeypatch) == 2
    optimizer.state_dict()
    assert followed_steps(optimizer, params, monkeypatch) == 3
    optimizer.load_state_dict(optimizer.state_dict())
    assert followed_steps(optimizer, params, monkeypatch) == 2
    assert followed_steps(optimizer, params, monkeypatch, idle=(1,)) == 2
    assert followed_steps(optimizer, params, monkeypatch, idle=(1,)) == 3
    assert optimizer.state
    assert followed_steps(optimizer, params, monkeypatch, idle=(1,)) == 0


def test_the_norm_is_that_of_the_gradients_of_now():
    params, optimizer = made(FusedAdamW)
    kept = []  # so that new gradients do not take the memory of old ones
    for t in range(1, 5):
        for p in params:
            kept.append(p.grad)
            p.grad = torch.full_like(p, float(t)) if t != 3 else p.grad
        optimizer.step(max_norm=float("inf"))
        assert optimizer.grad_norm.item() == torch.nn.utils.get_total_norm([p.grad for p in params]).item()


def test_a_step_on_another_back_end_leaves_no_gradient_of_before():
    (a, b), twins = [[nn.Parameter(torch.ones(4, 3)) for _ in range(2)] for _ in range(2)]
    ours, theirs = FusedAdamW([a, b], lr=0.1), torch.optim.AdamW(twins, lr=0.1)

    def step(*grads):
        for p, q, grad in zip((a, b), twins, grads):
            p.grad, q.grad = grad, grad.clone()
        ours.step(max_norm=float("inf"))
        theirs.step()
        assert ours.grad_norm.item() == torch.nn.utils.get_total_norm(grads).item()

    first, of_b = torch.ones(4, 3), torch.ones(4, 3)
    step(first, of_b)
    step(first, of_b)
    second = -torch.ones(4, 3)
    with backend("torch"):
        step(second, torch.ones(3, 4).t())  # laid out otherwise than the parameter: what was known of `b` does not hold
    step(second, of_b)
    for p, q in zip((a, b), twins):
        torch.testing.assert_close(p, q)
