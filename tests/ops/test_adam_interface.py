"""adam_ as a citizen of torch: layouts, plans, autograd, torch.library, torch.compile; what it says of bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops import dispatch
from support.adam import BACKENDS, Settings, Tensors, call, some, step_on
from support.backends import needs_core, running_on

reads_fast = pytest.mark.skipif(
    not dispatch.status("cpp").available or not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
    reason="needs the core and a torch that publishes DLPack's exchange table",
)
NAMES = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "extras")


def same(a: Tensors, b: Tensors) -> bool:
    return all(torch.equal(x, y) for left, right in zip(a.lists(), b.lists()) for x, y in zip(left, right))


def with_gaps(x: Tensor) -> Tensor:
    """``x`` as every other element of a larger tensor."""
    return torch.stack([x, torch.full_like(x, 7)], dim=-1)[..., 0]


def transposed(x: Tensor) -> Tensor:
    """``x`` with its elements in another order in memory."""
    return x.t().contiguous().t()


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]] = {
    "all transposed": (transposed, NAMES),
    "transposed grads": (transposed, ("grads",)),
    "transposed params": (transposed, ("params",)),
    "gaps in params": (with_gaps, ("params",)),
    "gaps in states": (with_gaps, ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")),
    "gaps everywhere": (with_gaps, NAMES),
}


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("extra", [None, torch.int16], ids=str)
def test_any_layout_gives_the_same_bits(backend: str, layout: str, extra: torch.dtype | None) -> None:
    dtype = torch.float32 if extra is None else torch.bfloat16
    plain = some([12, 36, 4], dtype, extra=extra, amsgrad=True).mapped(lambda x: x.view(-1, 4) if x.dim() else x)
    odd = plain.mapped(lambda x: x.clone())
    change, names = LAYOUTS[layout]
    for name in names:
        if getattr(odd, name) is not None:
            setattr(odd, name, [change(x) for x in getattr(odd, name)])
    for zero_grads in (False, True):
        plain = step_on(backend, plain, Settings(), zero_grads=zero_grads)
        with running_on(backend):
            call(odd, Settings(), zero_grads=zero_grads)
        assert same(plain, odd)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_expanded_gradients_are_read_and_expanded_params_refused(backend: str) -> None:
    tensors = some([40])
    dense = tensors.mapped(lambda tensor: tensor.clone())
    tensors.grads, dense.grads = [torch.ones(()).expand(40)], [torch.ones(40)]
    with running_on(backend):
        call(tensors, Settings())
        call(dense, Settings())
        assert same(tensors, dense)
        tensors.params = [torch.ones(()).expand(40)]
        with pytest.raises(ValueError, match="expanded"):
            call(tensors, Settings())


def replaced_grads(tensors: Tensors) -> None:
    tensors.grads = [grad * 2 for grad in tensors.grads]


def moved_data(tensors: Tensors) -> None:
    tensors.params[1].data = tensors.params[1].detach() + 1
    tensors.exp_avgs[0].data = tensors.exp_avgs[0].detach() + 1


def fewer(tensors: Tensors) -> None:
    for name in NAMES[:4]:
        setattr(tensors, name, getattr(tensors, name)[1:])


def other_dtype(tensors: Tensors) -> None:
    tensors.params = [param.bfloat16() for param in tensors.params]
    tensors.grads = [grad.bfloat16() for grad in tensors.grads]


def other_dtype_in_place(tensors: Tensors) -> None:
    for param, grad in zip(tensors.params, tensors.grads):
        param.data, grad.data = param.bfloat16(), grad.bfloat16()


def other_strides(tensors: Tensors) -> None:
    tensors.grads[0] = tensors.grads[0].view(10, 10).t()
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        getattr(tensors, name)[0] = getattr(tensors, name)[0].view(10, 10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change", [replaced_grads, moved_data, fewer, other_dtype, other_dtype_in_place, other_strides]
)
def test_a_plan_notices_every_change(backend: str, change: Callable[[Tensors], None]) -> None:
    tensors, plan = some([100, 7, 0, 33]), ops.AdamPlan()
    plain = tensors.mapped(lambda tensor: tensor.clone())
    with running_on(backend):
        for changed in (False, False, True, False):
            if changed:
                change(tensors)
                change(plain)
            call(tensors, Settings(), plan=plan)
            call(plain, Settings())
            assert same(tensors, plain)


@needs_core
def test_a_plan_keeps_its_table_and_cache_while_nothing_moves() -> None:
    tensors, plan = some([100, 7]), ops.AdamPlan()
    call(tensors, Settings(), plan=plan)
    table = plan.table
    plan.cache["copy"] = 1
    call(tensors, Settings(), plan=plan)
    assert plan.table is table and plan.cache == {"copy": 1}
    before = tensors.grads  # kept, so that the new ones lie elsewhere
    replaced_grads(tensors)
    call(tensors, Settings(), plan=plan)
    assert plan.table is not table and not plan.cache and len(before) == 2


@reads_fast
def test_both_ways_to_read_tensors_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = some([100, 7, 0, 33], torch.bfloat16, extra=torch.int16)
    columns = (tensors.params, tensors.grads, tensors.exp_avgs, tensors.exp_avg_sqs, None, tensors.extras)
    fast, slow = ops.AdamPlan(), ops.AdamPlan()
    assert fast.update(columns) == []
    monkeypatch.setattr(dispatch, "core", lambda: None)
    assert slow.update(columns) == []
    assert torch.equal(fast.table, slow.table) and fast.dtypes == slow.dtypes and fast.device == slow.device


@reads_fast
def test_tensors_that_follow_each_other_are_one_row_unless_rounded_stochastically() -> None:
    for state, rows in ((torch.float32, 2), (torch.bfloat16, 4)):
        tensors = some([16] * 4, state=state)
        for name in NAMES[:4]:
            setattr(tensors, name, list(torch.cat(getattr(tensors, name)).split(16)))
        apart = torch.cat([*tensors.grads[:2], torch.zeros(1), *tensors.grads[2:]])  # one element between
        tensors.grads = [*apart[:32].split(16), *apart[33:].split(16)]
        plan = ops.AdamPlan()
        call(tensors, Settings(), plan=plan)
        assert len(plan.table) == rows
        assert int(plan.table[:, 6].sum()) == 64 and plan.table[-1, 7] == 4 - 4 // rows


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_autograd_notices_the_update(backend: str) -> None:
    param = torch.randn(5, requires_grad=True)
    tensors = Tensors([param], [torch.ones(5)], [torch.zeros(5)], [torch.zeros(5)])
    loss = (param * param).sum()
    with running_on(backend):
        call(tensors, Settings())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_no_tensors_advance_the_step(backend: str) -> None:
    for tensors in (Tensors([], [], [], []), some([0, 0], steps=0)):
        with running_on(backend):
            call(tensors, Settings())
        assert float(tensors.step) == 1


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_lr_may_be_a_tensor(backend: str) -> None:
    tensors = some([50])
    want = step_on(backend, tensors, Settings(lr=0.25))
    for lr in (torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64)):
        got = step_on(backend, tensors, Settings(), lr=lr)
        torch.testing.assert_close(got.params, want.params, rtol=1e-6, atol=1e-7)


def operator_arguments(tensors: Tensors) -> tuple[Any, ...]:
    lists = (tensors.params, tensors.grads, tensors.exp_avgs, tensors.exp_avg_sqs)
    rest = (tensors.max_exp_avg_sqs or [], tensors.extras or [], tensors.step, None, 1e-2, None, None, None)
    return (*lists, *rest, 0.9, 0.999, 1e-8, 0.1, True, "torch", False, True, 0)


@needs_core
@pytest.mark.parametrize("extra", [None, torch.int16], ids=str)
def test_opcheck(extra: torch.dtype | None) -> None:
    tensors = some([5, 33], torch.float32 if extra is None else torch.bfloat16, extra=extra, amsgrad=True)
    torch.library.opcheck(torch.ops.pyseq.adam_.default, operator_arguments(tensors))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_compiles_to_one_graph(backend: str) -> None:
    def clipped_step(tensors: Tensors) -> tuple[Tensor, Tensor]:
        found = ops.grad_norm(tensors.grads, max_norm=0.1)
        call(tensors, Settings(), factor=found.factor, found_inf=found.found_inf)
        return found.norm, tensors.params[0] * 2  # what is read after the step has to be the new parameter

    with running_on(backend):
        torch.compiler.reset()
        compiled = torch.compile(clipped_step, fullgraph=True, backend="aot_eager")
        tensors = some([50, 7], amsgrad=True)
        plain = tensors.to()
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(clipped_step(plain), compiled(tensors)))
        assert same(tensors, plain)


WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "2 params and 1 exp_avgs", {"exp_avgs": [torch.ones(4)]}),
    (ValueError, "shape", {"grads": [torch.ones(4), torch.ones(6)]}),
    (ValueError, "shape", {"exp_avg_sqs": [torch.ones(4), torch.ones(5, 1)]}),
    (ValueError, "meta", {"grads": [torch.ones(4), torch.ones(5, device="meta")]}),
    (TypeError, "once for each combination", {"grads": [torch.ones(4), torch.ones(5).bfloat16()]}),
    (TypeError, "layout", {"grads": [torch.ones(4), torch.ones(5).to_sparse()]}),
    (TypeError, "cannot update", {"params": [torch.ones(4).double(), torch.ones(5).double()]}),
    (ValueError, "beta1", {"beta1": 1.0}),
    (ValueError, "beta2", {"beta2": -0.1}),
    (ValueError, "eps must", {"eps": -1e-8}),
    (ValueError, "eps must", {"eps": math.nan}),
    (ValueError, "weight_decay", {"weight_decay": -0.1}),
    (ValueError, "lr must", {"lr": -1.0}),
    (ValueError, "lr must", {"lr": math.nan}),
    (ValueError, "lr must have one element", {"lr": torch.ones(2)}),
    (ValueError, "eps_mode", {"eps_mode": "other"}),
    (ValueError, "seed", {"seed": -1}),
    (TypeError, "step must", {"step": torch.zeros((), dtype=torch.int64)}),
    (TypeError, "step must", {"step": torch.zeros(2)}),
    (ValueError, "step is on meta", {"step": torch.zeros((), device="meta")}),
    (ValueError, "factor must have one element", {"factor": torch.ones(2)}),
]


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("wrong", range(len(WRONG)), ids=lambda i: f"{WRONG[i][1]} {next(iter(WRONG[i][2]))}")
def test_bad_arguments_are_told_and_change_nothing(backend: str, wrong: int) -> None:
    kind, words, changed = WRONG[wrong]
    tensors = some([4, 5])
    before = tensors.to()
    lists = {name: getattr(tensors, name) for name in NAMES[:4]}
    arguments = {**lists, **vars(Settings()), "step": tensors.step, **changed}
    if "params" in changed:
        backend = "torch"  # the core has no kernel for fp64
    with running_on(backend), pytest.raises(kind, match=words):
        ops.adam_(**arguments)
    assert same(tensors, before)


@needs_core
def test_the_core_refuses_what_it_cannot_read() -> None:
    core = dispatch.required_core()
    table = torch.zeros(1, 8, dtype=torch.int64)
    table[0, 6] = 3
    rule = (0.9, 0.999, 1e-8, 0.1, True, True, False, False, 0)
    step = torch.zeros(())
    for dtypes, words in (((0, 0, 0, 0), "null"), ((0, 0, 2, 0), "no kernel"), ((0, 0, 0, 2), "no kernel")):
        with pytest.raises(ValueError, match=words):
            core.adam(table.data_ptr(), 1, *dtypes, *rule, step.data_ptr(), 0.1, 0, 0, 0, 0, 1)
    step.fill_(math.nan)
    with pytest.raises(ValueError, match="step"):
        core.adam(0, 0, 0, 0, 0, 0, *rule, step.data_ptr(), 0.1, 0, 0, 0, 0, 1)
