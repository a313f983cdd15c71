"""adam_ of parameters, gradients and states in 16 bits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pyseq.ops.adam import round_stochastically
from pyseq.ops.random import random_words
from support.adam import (
    BACKENDS,
    Settings,
    Tensors,
    call,
    error,
    half_ulp,
    masters_of,
    oracle,
    sizes_for,
    some,
    step_on,
)
from support.backends import is_interpreted, running_on

F32, BF16, F16, I16 = torch.float32, torch.bfloat16, torch.float16, torch.int16

COMBINATIONS = [
    *itertools.product([F32], [F32, BF16, F16], [F32, BF16], [None]),
    *itertools.product([BF16], [BF16, F32], [F32, BF16], [None, F32, I16]),
    *itertools.product([F16], [F16, F32], [F32, BF16], [None, F32]),
]
SIZES = [1, 15, 16, 17, 64, 65, 1000, 16385]

Combination = tuple[torch.dtype, torch.dtype, torch.dtype, torch.dtype | None]


def name_of(combination: Combination) -> str:
    return "-".join(str(dtype).removeprefix("torch.") for dtype in combination)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("combination", COMBINATIONS, ids=name_of)
def test_error_is_near_that_of_the_reference(backend: str, combination: Combination) -> None:
    for settings, amsgrad in ((Settings(), False), (Settings(decoupled=False, eps_mode="fairseq"), True)):
        sizes = sizes_for(backend) if is_interpreted(backend) else SIZES
        tensors = some(sizes, *combination, amsgrad=amsgrad)
        exact = oracle(tensors, settings)
        plain, got = step_on("torch", tensors, settings), step_on(backend, tensors, settings)
        parts = [("masters", masters_of(plain), masters_of(got), exact.params)]
        for name in ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")[: 2 + amsgrad]:
            parts.append((name, getattr(plain, name), getattr(got, name), getattr(exact, name)))
        for name, by_torch, by_kernel, want in parts:
            allowed = max(1.5 * error(by_torch, want), half_ulp(want, by_kernel[0].dtype))
            assert error(by_kernel, want) <= allowed, f"{name}: {error(by_kernel, want)}, allowed {allowed}"


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("param", [BF16, F16], ids=str)
def test_parameters_are_the_rounded_masters(backend: str, param: torch.dtype) -> None:
    tensors = some(SIZES, param, extra=F32)
    for _ in range(3):
        tensors = step_on(backend, tensors, Settings())
    assert tensors.extras is not None
    assert all(torch.equal(p, master.to(param)) for p, master in zip(tensors.params, tensors.extras))


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("extra", [F32, I16], ids=str)
def test_masters_follow_fp32_parameters_bit_for_bit(backend: str, extra: torch.dtype) -> None:
    sixteen = some([1, 65, 1000] if backend == "triton" else SIZES, BF16, extra=extra)
    full = sixteen.to()
    full.params, full.extras = [master.clone() for master in masters_of(sixteen)], None
    for _ in range(20):
        sixteen, full = step_on(backend, sixteen, Settings()), step_on(backend, full, Settings())
        full.grads = sixteen.grads
    assert all(torch.equal(a, b) for a, b in zip(masters_of(sixteen), full.params))
    assert all(torch.equal(a, b) for a, b in zip(sixteen.exp_avg_sqs, full.exp_avg_sqs))


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("param", [BF16, F16], ids=str)
def test_fp32_states_are_not_rounded_to_16_bits(backend: str, param: torch.dtype) -> None:
    got = step_on(backend, some([1000], param), Settings())
    for state in (got.exp_avgs[0], got.exp_avg_sqs[0]):
        assert state.dtype == F32
        assert (state.to(param).float() != state).float().mean() > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_stochastic_rounding_is_the_same_on_every_back_end(backend: str) -> None:
    # From exact states: where the number before rounding is the same, so is the rounded one.
    tensors = some([1, 63, 64, 65, 130, 1000], state=BF16, amsgrad=True)
    settings = Settings(beta1=0.5, beta2=0.75, seed=2**62 + 12345)
    for grad in tensors.grads:
        grad.copy_((grad * 64).round() / 64)
    want, got = step_on("torch", tensors, settings), step_on(backend, tensors, settings)
    for name in ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(want, name), getattr(got, name)))
    for other in (Settings(beta1=0.5, beta2=0.75, seed=7), settings):
        tensors.step += other is settings
        assert not torch.equal(step_on(backend, tensors, other).exp_avgs[5], got.exp_avgs[5])


@pytest.mark.parametrize("backend", BACKENDS)
def test_stochastic_rounding_does_not_depend_on_where_tensors_lie(backend: str) -> None:
    tensors = some([70, 70, 70], state=BF16)
    want = step_on(backend, tensors, Settings(seed=3))
    with running_on(backend) as device:
        moved = tensors.to(device)
        for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
            setattr(moved, name, list(torch.cat(getattr(moved, name)).split(70)))
        call(moved, Settings(seed=3))
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        assert all(torch.equal(a, b.cpu()) for a, b in zip(getattr(want, name), getattr(moved, name)))
    alike = [tensor[:1].expand(70).clone() for tensor in (tensors.exp_avgs[0], tensors.exp_avgs[0])]
    assert torch.equal(alike[0], alike[1])


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=[pytest.mark.slow] * (name == "triton")) for name in ["torch", *BACKENDS]]
)
def test_bf16_second_moment_does_not_stagnate(backend: str) -> None:
    # With beta2 = 0.999 a step changes v by at most 0.1 %, a quarter of the distance between bf16 numbers: rounded to
    # nearest it would stay where it is. From v = 1 and gradients of 0.5 it has to fall towards 0.25.
    elements, steps = 2048, 400
    tensors = Tensors(
        [torch.zeros(elements)], [torch.full((elements,), 0.5)], [torch.zeros(elements, dtype=BF16)], [], None
    )
    tensors.exp_avg_sqs = [torch.ones(elements, dtype=BF16)]
    nearest, exact = torch.ones((), dtype=BF16), 1.0
    with running_on(backend) as device:
        tensors = tensors.to(device)
        for _ in range(steps):
            call(tensors, Settings(beta2=0.999, seed=5))
            nearest = (0.999 * nearest.float() + 0.001 * 0.25).to(BF16)
            exact = 0.999 * exact + 0.001 * 0.25
    assert float(nearest) == 1.0
    assert float(tensors.exp_avg_sqs[0].double().mean()) == pytest.approx(exact, rel=2e-3)


def test_stochastic_rounding_is_unbiased_and_keeps_what_is_special() -> None:
    words = random_words(torch.tensor([1]), torch.tensor([2]), 100_000) & 0xFFFF
    value = torch.full((100_000,), 1.0 + 2.0**-7 / 8)  # an eighth of the way to the next bf16 number
    rounded = round_stochastically(value, words)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2.0**-7}
    assert float((rounded != 1).double().mean()) == pytest.approx(1 / 8, abs=0.005)
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 3.4028234e38, -0.0, 1e-45])
    got = round_stochastically(special, torch.full((6,), 0xFFFF))
    assert got[0] == special[0] and got[1] == special[1] and got[2].isnan() and got[3].isfinite()
    assert torch.equal(got[4].view(torch.int32), special[4].view(torch.int32))


def test_float64_runs_on_the_reference() -> None:
    tensors = some([10]).mapped(lambda tensor: tensor.double() if tensor.dim() else tensor)
    exact = oracle(tensors, Settings())
    call(tensors, Settings())
    assert error(tensors.params, exact.params) < 1e-14
    assert tensors.params[0].dtype == torch.float64


def is_refused(*dtypes: torch.dtype | None) -> bool:
    tensors: Tensors = some([4], *dtypes)  # type: ignore[arg-type]
    before: list[list[Tensor]] = tensors.to().lists()
    with pytest.raises(TypeError, match="cannot update"):
        call(tensors, Settings())
    return all(torch.equal(a, b) for x, y in zip(before, tensors.lists()) for a, b in zip(x, y))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_other_combinations_are_refused(backend: str) -> None:
    with running_on(backend):
        assert is_refused(F16, BF16)
        assert is_refused(BF16, F16)
        assert is_refused(F32, F32, F16)
        assert is_refused(F32, F32, F32, F32)
        assert is_refused(F32, torch.float64)
        with pytest.raises(TypeError, match="masters must be"):
            tensors = some([4], BF16, extra=I16)
            tensors.extras, low = None, tensors.extras
            call(tensors, Settings(), masters=low)
        with pytest.raises(ValueError, match="give one of them"):
            call(some([4], BF16, extra=I16), Settings(), masters=some([4]).params)
