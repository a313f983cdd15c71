from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pyseq.errors import ConfigError
from pyseq.optim import FusedAdam, FusedAdamW
from support.optimizers import PAIRS, assert_near, copies, draw_grads, parameters


@pytest.mark.parametrize("ours, theirs", PAIRS)
@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"amsgrad": True, "maximize": True}, {"betas": (0.8, 0.98), "eps": 1e-3, "lr": 0.1}],
)
def test_two_hundred_steps_are_those_of_torch(ours, theirs, options):
    a = parameters()
    b, c = copies(a), copies(a, torch.float64)
    optimizers = [ours(a, **options), theirs(b, **options), theirs(c, **options)]
    for t in range(200):
        draw_grads(t, a, b, c)
        for optimizer in optimizers:
            optimizer.step()
    assert_near(*[[p.detach() for p in params] for params in (a, b, c)])
    for key in optimizers[1].state[b[0]]:
        assert_near(*[[o.state[p][key] for p in params] for o, params in zip(optimizers, (a, b, c))])


def test_dtypes_groups_and_strides_may_be_mixed():
    def make(dtype_of):
        torch.manual_seed(0)
        values = [torch.randn(6, 4).t(), torch.randn(8, 3)[::2], torch.randn(5).double(), torch.randn(5).bfloat16()]
        values += [torch.randn(7), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)]
        return [nn.Parameter(dtype_of(v)) for v in values]

    a = make(lambda v: v)
    exact = make(lambda v: v.double())
    groups = lambda ps: [{"params": ps[:4], "lr": 0.1}, {"params": ps[4:], "betas": (0.5, 0.9), "weight_decay": 0.1}]  # noqa: E731
    ours, oracle = FusedAdamW(groups(a)), torch.optim.AdamW(groups(exact))
    for t in range(10):
        draw_grads(t, a, exact)
        ours.step()
        oracle.step()
    for p, q in zip(a, exact):
        bits = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8}[p.dtype]
        torch.testing.assert_close(p.detach().double(), q.detach(), rtol=bits, atol=bits)
    assert ours.state[a[5]]["exp_avg"].stride() == a[5].stride()


def test_a_gradient_of_another_dtype_than_before_is_taken_in():
    p = nn.Parameter(torch.zeros(3))
    optimizer = FusedAdam([p], lr=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    p.data = p.data.double()
    p.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeError, match="float64"):
        optimizer.step()


def test_clipping_in_the_step_is_clipping_before_it_and_leaves_the_gradients():
    a, b = parameters(), parameters()
    optimizer, other = FusedAdamW(a, lr=0.1), FusedAdamW(b, lr=0.1)
    for t in range(20):
        draw_grads(t, a, b)
        before = [p.grad.clone() for p in a]
        norm = nn.utils.clip_grad_norm_(b, 3.0)
        optimizer.step(max_norm=3.0)
        other.step()
        assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
        assert optimizer.grad_norm.shape == () and optimizer.grad_norm.dtype == torch.float32
        assert all(torch.equal(p.grad, g) for p, g in zip(a, before))
    for p, q in zip(a, b):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


def test_an_infinite_limit_only_measures():
    a, b = parameters(), parameters()
    optimizer, other = FusedAdamW(a), FusedAdamW(b)
    draw_grads(0, a, b)
    optimizer.step(max_norm=math.inf)
    other.step()
    assert other.grad_norm is None and optimizer.grad_norm.item() > 0
    assert all(torch.equal(p, q) for p, q in zip(a, b))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_makes_the_step_do_nothing(bad):
    params = parameters()
    optimizer = FusedAdamW(params, lr=0.1)
    draw_grads(0, params)
    optimizer.step(max_norm=1.0)
    before = copy.deepcopy(optimizer.state_dict()), copies(params)
    params[1].grad[3] = bad
    optimizer.step(max_norm=1.0)
    assert not math.isfinite(optimizer.grad_norm.item())
    assert all(torch.equal(p, q) for p, q in zip(params, before[1]))
    for old, new in zip(before[0]["state"].values(), optimizer.state_dict()["state"].values()):
        assert all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.parametrize("factor", [0.25, torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64)])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_factor_multiplies_the_gradients_before_they_are_clipped(factor, max_norm):
    a, b = parameters(), parameters()
    optimizer, other = FusedAdam(a, lr=0.1), FusedAdam(b, lr=0.1)
    draw_grads(0, a, b)
    for p in b:
        p.grad *= 0.25
    optimizer.step(max_norm=max_norm, factor=factor)
    other.step(max_norm=max_norm)
    for p, q in zip(a, b):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_gradients_can_be_zeroed_on_the_way():
    a, b = parameters(), parameters()
    optimizer, other = FusedAdam(a), FusedAdam(b)
    draw_grads(0, a, b)
    kept = [p.grad for p in a]
    optimizer.step(zero_grads=True)
    other.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert all(p.grad is grad and grad.count_nonzero() == 0 for p, grad in zip(a, kept))


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_grad_scaler(unscale_first, max_norm):
    torch.manual_seed(0)
    models = [nn.Linear(4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [FusedAdamW(models[0].parameters(), lr=0.1), torch.optim.AdamW(models[1].parameters(), lr=0.1)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3) for _ in models]
    for t in range(10):
        inputs = torch.randn(5, 4) * (torch.inf if t == 4 else 1.0)
        for model, optimizer, scaler in zip(models, optimizers, scalers):
            optimizer.zero_grad()
            scaler.scale(model(inputs).pow(2).mean()).backward()
            ours = optimizer is optimizers[0]
            if unscale_first or (max_norm and not ours):
                scaler.unscale_(optimizer)
            if max_norm and not ours:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            scaler.step(optimizer, **({"max_norm": max_norm} if max_norm and ours else {}))
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale()
    for p, q in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert optimizers[0].state[p]["step"].item() == optimizers[1].state[q]["step"].item() == 9


def test_tensors_as_settings():
    a, b = parameters(), parameters()
    lr = torch.tensor(0.1)
    ours = FusedAdam(a, lr=lr, betas=(torch.tensor(0.8), torch.tensor(0.95)))
    theirs = torch.optim.Adam(b, lr=0.1, betas=(0.8, 0.95))
    for t in range(5):
        draw_grads(t, a, b)
        lr.fill_(0.1 / (t + 1))
        theirs.param_groups[0]["lr"] = 0.1 / (t + 1)
        ours.step()
        theirs.step()
    for p, q in zip(a, b):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_torchs_schedulers_drive_it(as_tensor):
    a, b = parameters(), parameters()
    ours, theirs = FusedAdam(a, lr=torch.tensor(0.1) if as_tensor else 0.1), torch.optim.Adam(b, lr=0.1)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10) for o in (ours, theirs)]
    for t in range(10):
        draw_grads(t, a, b)
        for optimizer, schedule in zip((ours, theirs), schedules):
            optimizer.step()
            schedule.step()
    for p, q in zip(a, b):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_groups_can_be_added_and_are_checked():
    params = parameters()
    optimizer = FusedAdamW(params[:1], lr=0.1)
    draw_grads(0, params)
    optimizer.step()
    optimizer.add_param_group({"params": params[1:], "lr": 0.2})
    draw_grads(1, params)
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 1, 1, 1]
    with pytest.raises(ValueError, match="lr must not be negative"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": -1.0})
    assert len(optimizer.param_groups) == 2


def test_named_parameters():
    model = nn.Linear(2, 2)
    optimizer = FusedAdam(model.named_parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_hooks_closure_and_the_returned_loss():
    p = nn.Parameter(torch.ones(3))
    optimizer = FusedAdam([p])
    seen = []
    optimizer.register_step_pre_hook(lambda *args: seen.append("before"))
    optimizer.register_step_post_hook(lambda *args: seen.append("after"))
    optimizer.register_load_state_dict_pre_hook(lambda o, saved: seen.append(saved["state"][0]["exp_avg"].shape))

    def closure():
        optimizer.zero_grad()
        loss = p.pow(2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after", (3,)]


def test_hooks_of_all_optimizers_and_the_profiler_see_a_step():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer, seen = FusedAdam([p]), []
    optimizer.step()
    for name, register in (("before", register_optimizer_step_pre_hook), ("after", register_optimizer_step_post_hook)):
        handle = register(lambda *args, name=name: seen.append(name))
        optimizer.step()
        handle.remove()
        optimizer.step()
    assert seen == ["before", "after"]
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert [event.key for event in profile.key_averages() if event.key == "Optimizer.step#FusedAdam.step"]


def test_a_compiled_training_step_may_call_it():
    model, plain = nn.Linear(3, 1), nn.Linear(3, 1)
    plain.load_state_dict(model.state_dict())
    ours, theirs = FusedAdamW(model.parameters(), lr=0.1), torch.optim.AdamW(plain.parameters(), lr=0.1)

    def train_step(inputs):
        ours.zero_grad()
        loss = model(inputs).pow(2).mean()
        loss.backward()
        ours.step()
        return loss

    compiled = torch.compile(train_step, backend="eager")
    for t in range(4):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(t))
        loss = compiled(inputs)
        theirs.zero_grad()
        expected = plain(inputs).pow(2).mean()
        expected.backward()
        theirs.step()
        torch.testing.assert_close(loss, expected)
    for p, q in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_autograd_notices_that_parameters_have_changed():
    p = nn.Parameter(torch.ones(3))
    optimizer = FusedAdam([p])
    loss = p.pow(2).sum()
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = FusedAdam(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="parameter 0, of shape .*sparse gradient"):
        optimizer.step()
    assert issubclass(ConfigError, Exception) and not optimizer.state


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"lr": -1.0}, ValueError, "lr must not be negative"),
        ({"lr": torch.ones(2)}, ValueError, "lr must be a number or a tensor of one element"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, ValueError, r"betas\[1\]"),
        ({"eps": -1e-8}, ValueError, "eps"),
        ({"weight_decay": math.nan}, ValueError, "weight_decay"),
        ({"differentiable": True}, RuntimeError, "differentiable=True is not supported"),
        ({"fused": True, "foreach": True}, RuntimeError, "`fused` and `foreach`"),
        ({"eps_mode": "apex"}, ValueError, "eps_mode must be"),
        ({"masters": "half"}, ValueError, "masters must be"),
        ({"state_dtype": torch.float16}, ValueError, "state_dtype must be"),
    ],
)
def test_settings_that_cannot_be(options, error, message):
    with pytest.raises(error, match=message):
        FusedAdam([nn.Parameter(torch.zeros(1))], **options)


@pytest.mark.parametrize(
    "dtype, options, message",
    [
        (torch.complex64, {}, "view_as_real"),
        (torch.float16, {"masters": "remainder"}, "fp16 is no prefix of fp32"),
    ],
)
def test_parameters_that_cannot_be(dtype, options, message):
    with pytest.raises(TypeError, match=message):
        FusedAdam([nn.Parameter(torch.zeros(1, dtype=dtype))], **options)


@pytest.mark.parametrize("name", ["foreach", "capturable", "fused"])
def test_torchs_keywords_without_meaning_here_are_taken(name):
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    for value in (None, False, True):
        FusedAdamW([p], **{name: value}).step()


def test_no_value_is_read_on_the_host():
    p = nn.Parameter(torch.zeros(4, 4, device="meta"))  # whose values cannot be read
    optimizer = FusedAdam([p], lr=torch.tensor(0.1, device="meta"), amsgrad=True)
    for _ in range(2):
        p.grad = torch.ones(4, 4, device="meta")
        optimizer.step(max_norm=1.0, zero_grads=True)
    assert optimizer.grad_norm.is_meta and optimizer.state[p]["step"].is_meta


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, options", [(torch.float32, {}), (torch.bfloat16, {"amsgrad": True})])
def test_a_captured_step_replays_what_eager_steps_do(dtype, options):
    shapes = [(1000, 33), (7,), ()]
    eager = [nn.Parameter(p.detach().cuda()) for p in parameters(dtype, shapes=shapes)]
    captured = copies(eager)
    rates = [torch.tensor(0.1, device="cuda") for _ in range(2)]
    ours, other = (FusedAdamW(ps, lr=lr, **options) for ps, lr in zip((eager, captured), rates))
    for p, q in zip(eager, captured):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    ours.step(max_norm=1.0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # states come into being outside the graph
        other.step(max_norm=1.0)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        other.step(max_norm=1.0, zero_grads=True)
    for t in range(5):
        for p, q in zip(eager, captured):
            grad = torch.randn(p.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(t)).to(dtype)
            p.grad.copy_(grad)
            q.grad.copy_(grad)
        for lr in rates:
            lr.fill_(0.1 / (t + 1))
        ours.step(max_norm=1.0)
        graph.replay()
        assert torch.equal(ours.grad_norm, other.grad_norm)
        assert all(q.grad.count_nonzero() == 0 for q in captured)
    for p, q in zip(eager, captured):
        assert torch.equal(p, q)
        for key in ours.state[p]:
            assert torch.equal(ours.state[p][key], other.state[q][key])
    assert other.state[captured[0]]["step"].item() == 6


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_device():
    params = [nn.Parameter(p.detach().cuda()) for p in parameters()]
    half = [nn.Parameter(p.detach().cuda()) for p in parameters(torch.bfloat16)]
    optimizer = FusedAdamW(params + half, lr=torch.tensor(0.1, device="cuda"))
    for p in params + half:
        p.grad = torch.ones_like(p)
    optimizer.step(max_norm=1.0)
    params[0].grad = None  # from here on the first parameter has a history of its own
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            optimizer.step(max_norm=1.0, factor=0.5, zero_grads=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [optimizer.state[p]["step"].item() for p in params[:2]] == [1, 3]


@pytest.mark.gpu
def test_devices_may_be_mixed_in_a_group():
    on_cpu = parameters()
    mixed = [nn.Parameter(p.detach().to("cuda" if i % 2 else "cpu")) for i, p in enumerate(on_cpu)]
    ours, other = FusedAdamW(on_cpu, lr=0.1), FusedAdamW(mixed, lr=0.1)
    for t in range(3):
        draw_grads(t, on_cpu)
        for p, q in zip(on_cpu, mixed):
            q.grad = p.grad.to(q.device)
        ours.step(max_norm=1.0)
        other.step(max_norm=1.0)
    for p, q in zip(on_cpu, mixed):
        torch.testing.assert_close(p, q.cpu(), rtol=1e-6, atol=1e-7)
        assert other.state[q]["step"].device == q.device
