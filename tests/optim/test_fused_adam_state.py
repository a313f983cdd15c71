"""What FusedAdam keeps of each parameter, and how it is saved, loaded, copied and exchanged with torch."""

from __future__ import annotations

import copy
import io
import os
import pickle

import pytest
import torch
from torch import nn

from pyseq.errors import CheckpointError
from pyseq.ops import join_master
from pyseq.optim import FusedAdam, FusedAdamW
from support.optimizers import PAIRS, assert_near, copies, draw_grads, parameters


@pytest.mark.parametrize("first, second", [(0, 1), (1, 0)])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"amsgrad": True}])
def test_a_state_goes_from_ours_to_torch_and_back_and_the_trajectory_goes_on(pair, first, second, options):
    a = parameters()
    whole = copies(a, torch.float64)
    oracle = pair[1](whole, **options)
    plain = copies(a)
    reference = pair[1](plain, **options)
    params = a
    t, state = 0, {}
    for which in (first, second, first):
        optimizer = pair[which](params, **options)
        if state:
            saved = io.BytesIO()
            torch.save(state, saved)
            saved.seek(0)
            loaded = torch.load(saved, weights_only=True)
            optimizer.load_state_dict(loaded)
            for p, old in zip(params, state["state"].values()):
                assert all(torch.equal(optimizer.state[p][k], old[k]) for k in old)
        for _ in range(20):
            draw_grads(t, params, whole, plain)
            optimizer.step()
            oracle.step()
            reference.step()
            t += 1
        state = optimizer.state_dict()
        params = copies(params)
    assert_near(*[[p.detach() for p in ps] for ps in (params, plain, whole)])
    assert all(s["step"].item() == 60 for s in state["state"].values())


def test_going_on_from_our_own_state_is_bitwise_the_same():
    a = parameters()
    optimizer = FusedAdamW(a, lr=0.1)
    for t in range(5):
        draw_grads(t, a)
        optimizer.step()
    b = copies(a)
    other = FusedAdamW(b, lr=0.3)
    other.load_state_dict(optimizer.state_dict())
    for t in range(5, 10):
        draw_grads(t, a, b)
        optimizer.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert all(optimizer.state[p]["step"] == other.state[q]["step"] == 10 for p, q in zip(a, b))


def test_the_state_dict_has_torchs_form():
    a, b = parameters(), parameters()
    ours, theirs = FusedAdamW(a, amsgrad=True), torch.optim.AdamW(b, amsgrad=True)
    draw_grads(0, a, b)
    ours.step()
    theirs.step()
    own, other = ours.state_dict(), theirs.state_dict()
    assert own["param_groups"] == other["param_groups"]
    assert list(own["param_groups"][0]) == list(other["param_groups"][0])
    assert [list(state) for state in own["state"].values()] == [list(state) for state in other["state"].values()]
    steps = [state["step"] for state in own["state"].values()]
    assert len({step.data_ptr() for step in steps}) == len(steps)  # torch counts each one by itself
    assert all(step.dtype == torch.float32 and step.shape == () for step in steps)


@pytest.mark.parametrize("dtype, masters", [("bfloat16", "auto"), ("bfloat16", "whole"), ("float16", "auto")])
def test_half_parameters_with_masters_are_those_of_fp32_rounded(dtype, masters):
    dtype = getattr(torch, dtype)
    a = parameters(dtype)
    b = copies(a, torch.float32)
    ours, theirs = FusedAdamW(a, lr=1e-4, masters=masters), FusedAdamW(b, lr=1e-4)
    for t in range(100):
        draw_grads(t, a, b)
        ours.step()
        theirs.step()
    for p, q in zip(a, b):
        state = ours.state[p]
        if "remainder" in state:
            assert torch.equal(join_master(p.detach(), state["remainder"]), q)
            near = (q - p.float()).abs() <= q.abs() * 2**-8
        else:
            assert torch.equal(state["master"], q)
            near = p == q.to(dtype)
        assert near.all()
    expected = "remainder" if (dtype, masters) == (torch.bfloat16, "auto") else "master"
    assert set(ours.state[a[0]]) == {"step", "exp_avg", "exp_avg_sq", expected}


@pytest.mark.parametrize("masters", ["auto", "whole", "none"])
def test_half_parameters_resume_bitwise(masters):
    a = parameters(torch.bfloat16)
    optimizer = FusedAdam(a, lr=1e-3, masters=masters)
    for t in range(10):
        draw_grads(t, a)
        optimizer.step()
    b = copies(a)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    other = FusedAdam(b, masters=masters)
    other.load_state_dict(torch.load(saved))
    for t in range(10, 20):
        draw_grads(t, a, b)
        optimizer.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert ("remainder" in other.state[b[0]]) == (masters == "auto")


def test_a_state_that_torch_has_cast_starts_with_fresh_masters():
    a = parameters(torch.bfloat16)
    ours = FusedAdam(a)
    draw_grads(0, a)
    ours.step()
    torch_params = copies(a)
    theirs = torch.optim.Adam(torch_params)
    theirs.load_state_dict(ours.state_dict())
    draw_grads(1, torch_params)
    theirs.step()
    b = copies(torch_params)
    back = FusedAdam(b)
    back.load_state_dict(theirs.state_dict())
    assert all("remainder" not in state for state in back.state.values())
    draw_grads(2, b)
    back.step()
    assert back.state[b[0]]["remainder"].dtype == torch.int16
    assert back.state[b[0]]["exp_avg"].dtype == torch.float32


def test_bits_that_loading_would_lose_are_an_error():
    a = parameters()
    ours = FusedAdam(a)
    draw_grads(0, a)
    ours.step()
    narrow = FusedAdam(copies(a), state_dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="the saved exp_avg of parameter 0 is float32 and would be rounded"):
        narrow.load_state_dict(ours.state_dict())
    assert not narrow.state
    half = parameters(torch.bfloat16)
    whole = FusedAdam(half, masters="whole")
    draw_grads(0, half)
    whole.step()
    with pytest.raises(CheckpointError, match="has a 'master'.*masters='whole'.*masters='auto'"):
        FusedAdam(half).load_state_dict(whole.state_dict())
    with pytest.raises(CheckpointError, match=r"parameter 0 has shape \(17, 5\) .* and \(5,\) in the model"):
        FusedAdam(parameters(shapes=[(5,)] * 4)).load_state_dict(ours.state_dict())


def test_bf16_states_are_rounded_stochastically_and_repeatably():
    p, q = nn.Parameter(torch.zeros(4096)), nn.Parameter(torch.zeros(4096))
    runs = [FusedAdam([x], state_dtype=torch.bfloat16, seed=5, betas=(0.9, 0.999)) for x in (p, q)]
    for _ in range(200):
        for x, optimizer in ((p, runs[0]), (q, runs[1])):
            x.grad = torch.ones(4096)
            optimizer.step()
    state = runs[0].state[p]
    assert state["exp_avg_sq"].dtype == torch.bfloat16
    # Rounded to nearest, v stops where a step of 0.001 is less than half a bf16 step; the expectation goes on.
    assert state["exp_avg_sq"].float().mean().item() == pytest.approx(1 - 0.999**200, rel=5e-3)
    assert torch.equal(p, q)
    other = nn.Parameter(torch.zeros(4096))
    optimizer = FusedAdam([other], state_dtype=torch.bfloat16, seed=6)
    for _ in range(200):
        other.grad = torch.ones(4096)
        optimizer.step()
    assert not torch.equal(optimizer.state[other]["exp_avg_sq"], state["exp_avg_sq"])


def test_each_parameter_counts_its_own_steps():
    params = parameters(shapes=[(3,)] * 3)
    singles = copies(params)
    optimizer = FusedAdamW(params, lr=0.1)
    others = [FusedAdamW([p], lr=0.1) for p in singles]
    missing = {1: {0}, 2: {0, 1}, 5: {2}}
    for t in range(8):
        draw_grads(t, params, singles)
        for i in missing.get(t, ()):
            params[i].grad = singles[i].grad = None
        optimizer.step()
        for other in others:
            other.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [6, 7, 7]
    assert all(torch.equal(p, q) for p, q in zip(params, singles))


def test_parameters_with_the_same_history_share_a_counter():
    params = parameters(shapes=[(3,)] * 100)
    optimizer = FusedAdam(params)
    for t in range(2):
        draw_grads(t, params)
        optimizer.step()
    assert len({id(state["step"]) for state in optimizer.state.values()}) == 1
    other = FusedAdam(params)
    other.load_state_dict(optimizer.state_dict())
    assert len({id(state["step"]) for state in other.state.values()}) == 1


def test_a_parameter_without_gradient_gets_no_state():
    p, q = parameters(shapes=[(3,)] * 2)
    optimizer = FusedAdam([p, q])
    p.grad = torch.ones(3)
    optimizer.step()
    assert q not in optimizer.state and list(optimizer.state_dict()["state"]) == [0]


def test_states_lie_together_where_the_parameters_do():
    flat, flat_grad = torch.randn(300), torch.randn(300)
    params = [nn.Parameter(part) for part in flat.split([33, 67, 200])]
    for p, grad in zip(params, flat_grad.split([33, 67, 200])):
        p.grad = grad
    optimizer = FusedAdam(params)
    optimizer.step()
    for _ in range(2):
        for key in ("exp_avg", "exp_avg_sq"):
            starts = [optimizer.state[p][key].data_ptr() for p in params]
            assert [b - a for a, b in zip(starts, starts[1:])] == [4 * 33, 4 * 67]
        optimizer.load_state_dict(optimizer.state_dict())  # also after loading


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
def test_a_copy_of_an_optimizer_goes_on_by_itself(how):
    params = parameters(torch.bfloat16)
    optimizer = FusedAdamW(params, eps_mode="fairseq", masters="whole", seed=3)
    draw_grads(0, params)
    optimizer.step(max_norm=1.0)
    if how == "pickle":
        other, twins = pickle.loads(pickle.dumps((optimizer, params)))
    elif how == "deepcopy":
        other, twins = copy.deepcopy((optimizer, params))
    else:
        file = io.BytesIO()
        torch.save((optimizer, params), file)
        file.seek(0)
        other, twins = torch.load(file, weights_only=False)
    assert other.param_groups[0]["params"][0] is twins[0]
    for t in (1, 2):
        draw_grads(t, params, twins)
        optimizer.step()
        other.step()
    assert all(torch.equal(p, q) and p is not q for p, q in zip(params, twins))
    assert (other.eps_mode, other.seed, other.policy) == ("fairseq", 3, optimizer.policy)


def test_a_tensor_that_a_user_puts_into_the_state_is_used():
    p = nn.Parameter(torch.zeros(3))
    optimizer = FusedAdam([p], lr=1.0, betas=(0.5, 0.5))
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.full((3,), 7.0)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].tolist() == [4.0] * 3
    # What programs do that add and remove points: another parameter in the place of the old one.
    q = nn.Parameter(torch.zeros(2))
    q.grad = torch.ones(2)
    optimizer.state[q] = {**optimizer.state.pop(p), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    optimizer.param_groups[0]["params"][0] = q
    before = p.detach().clone()
    optimizer.step()
    assert q.detach().abs().min() > 0 and torch.equal(p, before)
    assert optimizer.state[q]["step"].item() == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_large_moments_are_zeros_of_this_process_alone():
    """A process that is forked off, as a worker that loads data is, must not share them."""
    param = torch.randn(600_000, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = FusedAdamW([param], lr=0.0)
    optimizer.step()
    moment = optimizer.state[param]["exp_avg"]
    assert torch.equal(moment, torch.full_like(moment, 0.1))
    if (child := os.fork()) == 0:
        moment[0] = 7.0
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert moment[0] == torch.tensor(0.1)
