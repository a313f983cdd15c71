from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pyseq.optim import clip_grad_norm_, get_total_norm
from pyseq.optim.clip_grad import measure, total_norm

# A large matrix, where an fp32 sum of squares goes wrong; vectors; a scalar; an empty tensor; a strided view.
SHAPES = [(1000, 1201), (7,), (), (0,), (64, 65)]


def with_grads(dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in SHAPES:
        p = nn.Parameter(torch.zeros(shape, dtype=dtype))
        p.grad = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
        params.append(p)
    params[-1].grad = params[-1].grad.t().contiguous().t()
    return [*params, nn.Parameter(torch.zeros(3))]


def norm64(params, order=2.0):
    flat = np.abs(np.concatenate([p.grad.double().numpy().ravel() for p in params if p.grad is not None]))
    if order == math.inf:
        return flat.max()
    top = flat.max()
    return top * float(np.sum((flat / top) ** order)) ** (1 / order)


@pytest.mark.parametrize("order", [2.0, 1.0, 3, 0.5, math.inf, "inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_norm_is_right_to_the_last_bit_of_fp32(dtype, order):
    params = with_grads(dtype)
    norm = clip_grad_norm_(params, math.inf, order)
    assert norm.dtype == torch.float32 and norm.shape == ()
    assert norm.item() == pytest.approx(norm64(params, float(order)), rel=6e-8)
    assert torch.equal(get_total_norm([p.grad for p in params[:-1]], order), norm)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_squares_may_overflow_where_the_norm_does_not(scale):
    params = with_grads(scale=scale)
    assert clip_grad_norm_(params, math.inf).item() == pytest.approx(norm64(params), rel=6e-8)


def test_a_total_of_bf16_tensors_does_not_depend_on_how_they_are_put_together():
    values = torch.full((3000,), 0.0315).bfloat16()
    exact = math.sqrt(3000) * values[0].item()
    for pieces in (1, 7, 3000):
        assert get_total_norm(values.chunk(pieces)).item() == pytest.approx(exact, rel=1e-7)
    assert torch.nn.utils.get_total_norm([values]).item() != pytest.approx(exact, rel=1e-4)  # what it is about


@pytest.mark.parametrize("max_norm", [math.inf, 1e9])
def test_gradients_below_the_limit_keep_every_bit(max_norm):
    params, same = with_grads(), with_grads()
    clip_grad_norm_(params, max_norm)
    for p, q in zip(params[:-1], same):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("order", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 4e-3)])
def test_clipping_scales_by_the_formula(dtype, error, order):
    params, before = with_grads(dtype), with_grads(dtype)
    norm = norm64(before, order)
    assert clip_grad_norm_(params, 2.5, order).item() == pytest.approx(norm, rel=6e-8)
    for p, q in zip(params[:-1], before):
        expected = q.grad.double() * (2.5 / (norm + 1e-6))
        torch.testing.assert_close(p.grad.double(), expected, rtol=error, atol=0)


def test_it_is_a_drop_in_for_torch_also_at_zero_and_by_position():
    ours, theirs = with_grads()[1:], with_grads()[1:]  # of the matrix, torch's own norm is off by 1.6e-5
    norm = clip_grad_norm_(ours, 1.5, 2.0, True, None)
    assert norm.item() == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, 1.5, 2.0, True, None).item(), rel=1e-5)
    for p, q in zip(ours[:-1], theirs):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=0)
    clip_grad_norm_(ours, max_norm=0.0)
    assert all(p.grad.count_nonzero() == 0 for p in ours[:-1])


def test_the_small_constant_counts_for_small_norms():
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.tensor([1e-6])
    clip_grad_norm_(p, 1e-6)
    assert p.grad.item() == pytest.approx(0.5e-6)


def test_dtypes_may_be_mixed():
    params = with_grads(torch.float32) + with_grads(torch.bfloat16, seed=1)
    assert clip_grad_norm_(params, 1.0).item() == pytest.approx(
        norm64(with_grads(torch.float32) + with_grads(torch.bfloat16, seed=1)), rel=6e-8
    )
    assert norm64(params) == pytest.approx(1.0, rel=1e-3)


def test_nothing_to_clip():
    assert clip_grad_norm_([], 1.0).item() == 0.0
    assert clip_grad_norm_([nn.Parameter(torch.zeros(2))], 1.0).item() == 0.0
    assert get_total_norm([]).dtype == torch.float32
    assert get_total_norm([torch.zeros(0)], math.inf).item() == 0.0
    with pytest.warns(UserWarning, match="exhausted generator"):
        clip_grad_norm_((p for p in []), 1.0)


@pytest.mark.parametrize("order", [2.0, 1.0, math.inf])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_value_that_is_not_finite_shows_in_the_norm(bad, order):
    params = with_grads()
    params[0].grad[500, 500] = bad
    before = params[1].grad.clone()
    with pytest.raises(RuntimeError, match="the norm of order .* cannot be clipped"):
        clip_grad_norm_(params, 1.0, order, error_if_nonfinite=True)
    assert torch.equal(params[1].grad, before)
    with pytest.raises(RuntimeError, match="cannot be clipped"):
        get_total_norm([p.grad for p in params[:-1]], order, error_if_nonfinite=True)
    assert not math.isfinite(clip_grad_norm_(params, 1.0, order).item())


@pytest.mark.parametrize("max_norm", [-1.0, math.nan])
def test_limits_that_cannot_be(max_norm):
    params = with_grads()
    with pytest.raises(ValueError, match="max_norm must not be negative or nan"):
        clip_grad_norm_(params, max_norm)


@pytest.mark.parametrize("order", [0, -1.0, -math.inf, math.nan])
def test_orders_that_cannot_be(order):
    with pytest.raises(ValueError, match="norm_type must be a positive number or inf"):
        get_total_norm([torch.ones(2)], order)


def test_complex_gradients_are_refused():
    with pytest.raises(TypeError, match="view_as_real"):
        get_total_norm([torch.ones(2, dtype=torch.complex64)])


def test_expert_parameters_are_scaled_but_not_measured():
    p, expert = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    expert.expert = True
    p.grad, expert.grad = torch.tensor([3.0, 4.0]), torch.tensor([100.0])
    assert clip_grad_norm_([expert, p], 1.0).item() == 5.0
    assert expert.grad.item() == pytest.approx(20.0, rel=1e-6)


def test_the_norm_of_all_processes_decides():
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    norm = clip_grad_norm_([p], 1.0, aggregate_norm_fn=lambda local: local * 2)
    assert norm.item() == 10.0
    torch.testing.assert_close(p.grad, torch.tensor([0.3, 0.4]))


def test_duplicate_rows_of_a_sparse_gradient_are_added_up_first():
    sparse, dense = nn.Embedding(4, 2, sparse=True), nn.Embedding(4, 2)
    dense.weight.data.copy_(sparse.weight.data)
    for embedding in (sparse, dense):
        embedding(torch.tensor([1, 1, 2])).pow(2).sum().backward()
    norms = [clip_grad_norm_(e.parameters(), 0.5) for e in (sparse, dense)]
    assert norms[0].item() == pytest.approx(norms[1].item(), rel=1e-6)
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)


@pytest.mark.parametrize("max_norm", [math.inf, 0.5, 1e9])
def test_measure_leaves_the_gradients_and_gives_the_factor_to_the_update(max_norm):
    params, same = with_grads(), with_grads()
    found = measure([p.grad for p in params[:-1]], max_norm=max_norm, scale=torch.tensor(0.125))
    norm = 0.125 * norm64(params)
    assert found.norm.item() == pytest.approx(norm, rel=2e-7)
    expected = 0.125 * min(1.0, max_norm / (norm + 1e-6))
    assert found.factor.item() == pytest.approx(expected, rel=2e-7)
    assert found.found_inf.item() == 0.0
    for p, q in zip(params[:-1], same):
        assert torch.equal(p.grad, q.grad)


def test_no_value_is_read_on_the_host():
    p = nn.Parameter(torch.zeros(4, device="meta"))  # whose values cannot be read
    p.grad = torch.ones(4, device="meta")
    assert clip_grad_norm_([p], 1.0).device.type == "meta"
    assert measure([p.grad], max_norm=1.0).factor.device.type == "meta"
    assert total_norm([p.grad], math.inf).device.type == "meta"


@pytest.mark.gpu
def test_on_the_gpu_as_on_the_cpu_and_without_waiting_for_it():
    on_cpu = with_grads()
    on_gpu = [nn.Parameter(p.detach().cuda()) for p in on_cpu]
    for p, q in zip(on_gpu, on_cpu):
        p.grad = None if q.grad is None else q.grad.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm = clip_grad_norm_(on_gpu, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert norm.item() == pytest.approx(clip_grad_norm_(on_cpu, 1.0).item(), rel=1e-7)
    for p, q in zip(on_gpu[:-1], on_cpu):
        torch.testing.assert_close(p.grad.cpu(), q.grad, rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_devices_may_be_mixed():
    on_cpu, same = with_grads()[:-1], with_grads()[:-1]
    mixed = [nn.Parameter(p.detach().to("cpu" if i % 2 else "cuda")) for i, p in enumerate(on_cpu)]
    for p, q in zip(mixed, on_cpu):
        p.grad = q.grad.to(p.device)
    assert clip_grad_norm_(mixed, 1.0).item() == pytest.approx(norm64(same), rel=1e-7)
    for p, q in zip(mixed, same):
        torch.testing.assert_close(p.grad.cpu(), q.grad / norm64(same), rtol=1e-5, atol=0)
