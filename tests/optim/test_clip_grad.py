from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pyseq.optim.clip_grad import clip_grad_norm_, total_norm

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


def norm64(params):
    flat = np.concatenate([p.grad.double().numpy().ravel() for p in params if p.grad is not None])
    return math.sqrt(math.fsum(flat**2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_norm_is_right_to_the_last_bit_of_fp32(dtype):
    params = with_grads(dtype)
    norm = clip_grad_norm_(params, 0.0)
    assert norm.dtype == torch.float32 and norm.shape == ()
    assert norm.item() == pytest.approx(norm64(params), rel=6e-8)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_squares_may_overflow_where_the_norm_does_not(scale):
    params = with_grads(scale=scale)
    assert clip_grad_norm_(params, 0.0).item() == pytest.approx(norm64(params), rel=6e-8)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, 1e9])
def test_gradients_below_the_limit_keep_every_bit(max_norm):
    params, same = with_grads(), with_grads()
    clip_grad_norm_(params, max_norm)
    for p, q in zip(params[:-1], same):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 4e-3)])
def test_clipping_scales_by_the_formula(dtype, error):
    params, before = with_grads(dtype), with_grads(dtype)
    norm = norm64(before)
    assert clip_grad_norm_(params, 2.5).item() == pytest.approx(norm, rel=6e-8)
    for p, q in zip(params[:-1], before):
        expected = q.grad.double() * (2.5 / (norm + 1e-6))
        torch.testing.assert_close(p.grad.double(), expected, rtol=error, atol=0)


def test_the_small_constant_counts_for_small_norms():
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.tensor([1e-6])
    clip_grad_norm_(p, 1e-6)
    assert p.grad.item() == pytest.approx(0.5e-6)


def test_dtypes_may_be_mixed():
    params = with_grads(torch.float32) + with_grads(torch.bfloat16, seed=1)
    assert clip_grad_norm_(params, 1.0).item() > 1.0
    assert norm64(params) == pytest.approx(1.0, rel=1e-3)


def test_nothing_to_clip():
    assert clip_grad_norm_([], 1.0).item() == 0.0
    assert clip_grad_norm_([nn.Parameter(torch.zeros(2))], 1.0).item() == 0.0
    assert total_norm([]).dtype == torch.float32


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_value_that_is_not_finite_shows_in_the_norm(bad):
    params = with_grads()
    params[0].grad[500, 500] = bad
    norm = clip_grad_norm_(params, 1.0)
    assert not math.isfinite(norm.item())


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
    assert p.grad.tolist() == pytest.approx([0.3, 0.4], rel=1e-6)


def test_sparse_gradients_are_clipped_with_repeated_rows_added_up():
    embedding = nn.Embedding(10, 3, sparse=True)
    dense = nn.Embedding(10, 3)
    dense.weight.data.copy_(embedding.weight.data)
    tokens = torch.tensor([1, 4, 1, 1])
    for module in (embedding, dense):
        module(tokens).sum().backward()
    norms = [clip_grad_norm_(module.parameters(), 0.5) for module in (embedding, dense)]
    assert torch.equal(*norms)
    torch.testing.assert_close(embedding.weight.grad.to_dense(), dense.weight.grad)


def test_no_value_is_read_on_the_host():
    p = nn.Parameter(torch.zeros(4, 4, device="meta"))  # whose values cannot be read
    p.grad = torch.ones(4, 4, device="meta")
    assert clip_grad_norm_([p], 1.0).is_meta


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
