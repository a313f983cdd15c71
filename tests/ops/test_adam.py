"""Every back end of adam_ in fp32, against float64, torch's optimizers and fairseq's formula."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

import pyseq.ops as ops
from support.adam import (
    BACKENDS,
    Settings,
    Tensors,
    call,
    error,
    half_ulp,
    oracle,
    sizes_for,
    some,
    step_on,
)
from support.backends import is_interpreted, needs_core, running_on

OPTIONS = [
    Settings(decoupled=decoupled, eps_mode=eps_mode, maximize=maximize, weight_decay=decay)
    for decoupled, eps_mode, maximize, decay in itertools.product(
        [True, False], ["torch", "fairseq"], [True, False], [0.1, 0.0]
    )
]


def check_step(backend: str, tensors: Tensors, settings: Settings) -> None:
    """Hold a back end's error against that of the torch reference."""
    exact = oracle(tensors, settings)
    plain, got = step_on("torch", tensors, settings), step_on(backend, tensors, settings)
    assert torch.equal(got.step, tensors.step + 1)
    for name in ("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
        want, by_torch, by_kernel = (getattr(x, name) for x in (exact, plain, got))
        if want is not None:
            # Without a fused multiply-add, m + (1 - beta1) (g - m) is rounded twice.
            times = 2.5 if backend == "cpp-portable" else 1.5
            allowed = max(times * error(by_torch, want), half_ulp(want, torch.float32))
            assert error(by_kernel, want) <= allowed, f"{name}: {error(by_kernel, want)}, allowed {allowed}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.0], ids=["params", "zero params"])  # from 0 the error is that of the update
def test_error_is_near_that_of_the_reference(backend: str, amsgrad: bool, scale: float) -> None:
    for settings in OPTIONS:
        check_step(backend, some(sizes_for(backend), amsgrad=amsgrad, scale=scale), settings)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [0, 1, 100_000, 16_000_000])
def test_any_number_of_steps(backend: str, steps: int) -> None:
    check_step(backend, some([1000], steps=steps), Settings(beta2=0.999))
    check_step(backend, some([1000], steps=steps), Settings(beta2=0.999, eps_mode="fairseq", eps=1e-3))


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("amsgrad", [True, False])
@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("weight_decay", [0.1, 0.0])
def test_trajectory_is_that_of_torch(
    backend: str, decoupled: bool, amsgrad: bool, maximize: bool, weight_decay: float
) -> None:
    # The interpreter takes 30 ms a step, so 200 steps are for one combination and the others show that they are heeded.
    plainest = decoupled and weight_decay and not amsgrad and not maximize
    steps = 20 if is_interpreted(backend) and not plainest else 200
    form = torch.optim.AdamW if decoupled else torch.optim.Adam
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(10, 7, generator=generator)
    settings = Settings(beta2=0.999, weight_decay=weight_decay, decoupled=decoupled, maximize=maximize)
    options = {"lr": settings.lr, "weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize}
    exact, plain = start.double().requires_grad_(), start.clone().requires_grad_()
    theirs = [form([leaf], **options) for leaf in (exact, plain)]
    ours = Tensors([start.clone()], [], [torch.zeros(10, 7)], [torch.zeros(10, 7)])
    ours.max_exp_avg_sqs = [torch.zeros(10, 7)] if amsgrad else None
    with running_on(backend) as device:
        ours = ours.to(device)
        for _ in range(steps):
            grad = torch.randn(10, 7, generator=generator)
            exact.grad, plain.grad, ours.grads = grad.double(), grad.clone(), [grad.to(device)]
            for optimizer in theirs:
                optimizer.step()
            call(ours, settings)
    assert float(ours.step) == steps
    # Roundings add up over the steps in an order of their own.
    assert error(ours.params, [exact.detach()]) <= 2 * error([plain.detach()], [exact.detach()]) + 1e-7


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_trajectory_is_that_of_fairseq(backend: str, eps: float) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(70, generator=generator)
    p, m, v = start.double(), torch.zeros(70).double(), torch.zeros(70).double()
    ours = Tensors([start.clone()], [], [torch.zeros(70)], [torch.zeros(70)])
    settings = Settings(eps=eps, eps_mode="fairseq")
    with running_on(backend) as device:
        ours = ours.to(device)
        for t in range(1, 41 if is_interpreted(backend) else 201):
            grad = torch.randn(70, generator=generator)
            g = grad.double()
            m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
            p = p - 0.1 * settings.lr * p
            p = p - settings.lr * math.sqrt(1 - 0.98**t) / (1 - 0.9**t) * m / (v.sqrt() + eps)
            ours.grads = [grad.to(device)]
            call(ours, settings)
    assert error(ours.params, [p]) < 2e-6
    # With a large eps the two places of it are far apart, so the test tells them from each other.
    if eps == 1e-2:
        other = step_on("torch", some([70], steps=0), Settings(eps=eps))
        assert error(other.params, step_on(backend, some([70], steps=0), settings).params) > 1e-5


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("zero_grads", [False, True])
def test_found_inf_leaves_every_bit(backend: str, zero_grads: bool) -> None:
    tensors = some([5, 100, 0, 33], amsgrad=True)
    for grad in tensors.grads:
        grad[::3], grad[1::3] = math.inf, math.nan
    tensors.params[1][7], tensors.exp_avgs[1][8] = math.nan, -math.inf
    for flag in (1.0, math.nan, math.inf):
        got = step_on(backend, tensors, Settings(), found_inf=torch.tensor(flag), zero_grads=zero_grads)
        for name, want, have in zip("pgmvx", tensors.lists(), got.lists()):
            for a, b in zip(want, have):
                if name == "g" and zero_grads:
                    assert not b.any()
                else:
                    assert torch.equal(a.view(torch.int32), b.view(torch.int32))
        assert float(got.step) == float(tensors.step)
    got = step_on(backend, tensors, Settings(), found_inf=torch.tensor(0.0))
    assert float(got.step) == float(tensors.step) + 1 and not torch.equal(got.params[0], tensors.params[0])


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_gradients_are_scaled_as_they_are_read_and_zeroed_on_request(backend: str) -> None:
    tensors = some([5, 100])
    settings = Settings(factor=0.37, grad_scale=1024.0)
    got, plain = step_on(backend, tensors, settings), step_on("torch", tensors, settings)
    exact = oracle(tensors, settings)
    assert error(got.params, exact.params) <= max(1.5 * error(plain.params, exact.params), 3e-7)
    assert error(got.exp_avg_sqs, exact.exp_avg_sqs) <= max(1.5 * error(plain.exp_avg_sqs, exact.exp_avg_sqs), 1e-9)
    assert all(torch.equal(a, b) for a, b in zip(got.grads, tensors.grads))
    zeroed = step_on(backend, tensors, settings, zero_grads=True)
    assert not any(grad.any() for grad in zeroed.grads)
    assert all(torch.equal(a, b) for a, b in zip(zeroed.params, got.params))


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_clipping_is_one_factor(backend: str) -> None:
    tensors = some([5, 100, 2000])
    clipped = tensors.to()
    torch.nn.utils.get_total_norm(clipped.grads)
    total = torch.nn.utils.get_total_norm(clipped.grads).double()
    for grad in clipped.grads:
        grad *= 0.5 / (total + 1e-6)
    with running_on(backend) as device:
        found = ops.grad_norm([grad.to(device) for grad in tensors.grads], max_norm=0.5)
        got = step_on(backend, tensors, Settings(), factor=found.factor, found_inf=found.found_inf)
    want = step_on(backend, clipped, Settings())
    torch.testing.assert_close(got.params, want.params, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_non_finite_numbers_stay_to_themselves(backend: str) -> None:
    tensors = some([100])
    clean = step_on(backend, tensors, Settings())
    tensors.grads[0][3], tensors.grads[0][17], tensors.params[0][50] = math.nan, math.inf, math.nan
    got = step_on(backend, tensors, Settings())
    bad = torch.tensor([3, 17, 50])
    assert got.params[0][bad].isnan().all() and got.exp_avgs[0][3].isnan() and got.exp_avg_sqs[0][17].isinf()
    good = torch.ones(100, dtype=torch.bool).index_fill(0, bad, False)
    assert torch.equal(got.params[0][good], clean.params[0][good])


@needs_core
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_bitwise_repeatable_and_independent_of_threads(isa: str) -> None:
    tensors = some([40_001, 3, 70_000, 1, 20_011], amsgrad=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7, 1):
            torch.set_num_threads(threads)
            results.append(step_on(f"cpp-{isa}", tensors, Settings()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for x, y in zip(results[0].lists(), other.lists()) for a, b in zip(x, y))


def flat(sizes: list[int], like: list[Tensor]) -> list[Tensor]:
    """``like`` as neighbours in one memory that begins at an odd element."""
    memory = torch.empty(sum(sizes) + 1, dtype=like[0].dtype)[1:]
    for part, tensor in zip(memory.split(sizes), like):
        part.copy_(tensor)
    return list(memory.split(sizes))


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_in_memory_give_the_same_bits(backend: str) -> None:
    sizes = [100, 7, 0, 33, 20_000, 1]
    tensors = some(sizes, amsgrad=True)
    want = step_on(backend, tensors, Settings())
    with running_on(backend) as device:
        moved = tensors.mapped(lambda tensor: tensor.clone().to(device))
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
            setattr(moved, name, flat(sizes, getattr(moved, name)))
        plan = ops.AdamPlan()
        call(moved, Settings(), plan=plan)
        if backend.startswith("cpp") and hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
            assert len(plan.table) == 1
    for x, y in zip(want.lists(), moved.to(torch.device("cpu")).lists()):
        assert all(torch.equal(a, b) for a, b in zip(x, y))


@needs_core
@given(st.data())
@hypothesis_settings(max_examples=40, deadline=None)
def test_any_sizes_and_offsets(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=6))
    settings = data.draw(st.sampled_from(OPTIONS))
    tensors = some(sizes, amsgrad=data.draw(st.booleans()))
    gap = data.draw(st.integers(0, 3))
    views = tensors.mapped(lambda x: torch.cat([x.new_full((gap,), math.nan), x])[gap:] if x.dim() else x)
    want = step_on("torch", tensors, settings)
    call(views, settings)
    for x, y in zip(want.lists(), views.lists()):
        for a, b in zip(x, y):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
