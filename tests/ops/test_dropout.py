"""Every back end of dropout: the same mask, exact values, and a random one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops.dropout import keep_mask, limit, reference
from support.accuracy import assert_near
from support.backends import is_interpreted, needs_core, running_on, using_isa

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["cpp-avx512", "cpp-avx2", "cpp-portable", "triton"]
SEED = 123456789012345678


def seed_on(device: torch.device, number: int = SEED) -> Tensor:
    return torch.tensor([number], device=device)


def some(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def run(backend: str, x: Tensor, p: float, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The result, and the gradients of x and residual of its sum weighted by 1, 2, 3, ..."""
    with running_on(backend) as device:
        leaf = x.detach().to(device).requires_grad_()
        added = None if residual is None else residual.detach().to(device).requires_grad_()
        y = ops.dropout(leaf, p, residual=added, seed=seed_on(device))
        weight = torch.arange(1, y.numel() + 1, device=device).remainder(7).view(y.shape).to(y.dtype)
        y.backward(weight)
    assert y.dtype == x.dtype and y.is_contiguous() and leaf.grad is not None
    return y.detach().cpu(), leaf.grad.cpu(), None if added is None else added.grad.cpu()  # type: ignore[union-attr]


def exact(x: Tensor, p: float, residual: Tensor | None) -> Tensor:
    keep = keep_mask(torch.tensor([SEED]), x.numel(), p).view(x.shape)
    kept = torch.where(keep, x.double() / (1 - p), 0.0)
    return kept if residual is None else kept + residual.double()


# One less than, equal to and one more than vectors (4, 8, 16), tiles of random numbers (128), what a thread (1024,
# 16384) and a Triton program (1024) take at a time.
SIZES = [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 127, 128, 129, 1023, 1025, 16383, 16385, 33001]
SIZES_INTERPRETED = [0, 1, 17, 128, 1025, 3001]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
def test_values_and_gradients(backend: str, dtype: torch.dtype, added: bool) -> None:
    p = 0.3
    for size in SIZES_INTERPRETED if is_interpreted(backend) else SIZES:
        x = some(size, dtype=dtype)
        residual = some(size + 1, dtype=dtype)[1:] if added else None
        y, grad, grad_residual = run(backend, x, p, residual)
        want = exact(x, p, residual)
        plain = reference(x, residual, p, torch.tensor([SEED]))
        ulps = 1.0 if backend == "triton" and dtype == torch.bfloat16 else 0.5  # the interpreter truncates to bf16
        assert_near(y, plain, want, ulps=ulps)
        weight = torch.arange(1, size + 1).remainder(7).to(dtype)
        keep = keep_mask(torch.tensor([SEED]), size, p)
        assert_near(grad, reference(weight, None, p, torch.tensor([SEED])), exact(weight, p, None), ulps=ulps)
        assert bool((grad[~keep] == 0).all()) and bool((grad[keep & (weight != 0)] != 0).all())
        if added:
            assert grad_residual is not None and torch.equal(grad_residual, weight)
        else:
            assert bool((y[~keep] == 0).all())


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "transposed": lambda x: x.t().contiguous().t(),
    "every other": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    x, residual = (LAYOUTS[layout](some(13, size)) for size in (37, 37))
    for got, want in zip(run(backend, x, 0.5, residual), run(backend, x.contiguous(), 0.5, residual.contiguous())):
        assert got is not None and want is not None and torch.equal(got, want)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_a_dropped_inf_or_nan_is_zero(backend: str) -> None:
    x = torch.tensor([float("inf"), float("nan"), float("-inf")]).repeat(1000)
    y, grad, _ = run(backend, x, 0.5, None)
    keep = keep_mask(torch.tensor([SEED]), 3000, 0.5)
    assert bool((y[~keep] == 0).all()) and bool((grad[~keep] == 0).all())
    assert torch.equal(y[keep].nan_to_num(7.0), x[keep].nan_to_num(7.0))
    with running_on(backend) as device:
        weight = torch.full((3000,), float("nan"), device=device)
        leaf = torch.ones(3000, device=device, requires_grad=True)
        ops.dropout(leaf, 0.5, seed=seed_on(device)).backward(weight)
    assert leaf.grad is not None and torch.equal(leaf.grad.cpu() == 0, ~keep)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_probabilities_at_the_ends(backend: str) -> None:
    with running_on(backend) as device:
        x = torch.ones(1000, device=device, requires_grad=True)
        assert ops.dropout(x, 0.0) is x and ops.dropout(x, 1e-6) is x
        assert torch.equal(ops.dropout(x, 0.0, residual=x), 2 * x)
        y = ops.dropout(x, 1.0)
        y.sum().backward()
        assert not y.any() and x.grad is not None and not x.grad.any()
        assert torch.equal(ops.dropout(x, 1.0, residual=x), x)
        nearly = ops.dropout(x, 1 - 1e-9)
        assert not nearly.isnan().any()


@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_the_rate_is_p_and_the_mean_stays(p: float) -> None:
    count = 1 << 20
    y = ops.dropout(torch.ones(count), p, seed=torch.tensor([3]))
    spread = (p * (1 - p) / count) ** 0.5
    assert abs(float((y == 0).double().mean()) - p) < 5 * spread + 2**-17
    assert abs(float(y.double().mean()) - 1) < 5 * spread / (1 - p) + 2**-16
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_calls_draw_independent_masks_which_the_seed_of_torch_repeats(backend: str) -> None:
    with running_on(backend) as device:
        x = torch.ones(20_000, device=device)

        def masks() -> Tensor:
            torch.manual_seed(11)
            return torch.stack([ops.dropout(x, 0.5) for _ in range(6)]).cpu() - 1

        first = masks()
        assert torch.equal(first, masks())
    correlations = first @ first.t() / first.size(1)
    assert float((correlations - torch.eye(6)).abs().max()) < 5 / 20_000**0.5


@needs_core
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_independent_of_threads(isa: str) -> None:
    x = some(300, 999)
    before = torch.get_num_threads()
    results = []
    with running_on("cpp"), using_isa(isa):
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            try:
                results.append(ops.dropout(x, 0.2, residual=x, seed=torch.tensor([5])))
            finally:
                torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@given(
    shape=st.lists(st.integers(0, 9), min_size=0, max_size=4),
    p=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    number=st.integers(0, 2**63 - 1),
)
@settings(max_examples=60, deadline=None)
def test_every_back_end_keeps_the_same_elements(shape: list[int], p: float, dtype: torch.dtype, number: int) -> None:
    x = torch.ones(shape, dtype=dtype)
    keep = keep_mask(torch.tensor([number]), x.numel(), p).view(x.shape)
    for backend in ("torch", "cpp"):
        with running_on(backend):
            y = ops.dropout(x, p, seed=torch.tensor([number]))
        assert y.shape == x.shape and torch.equal(y != 0, keep if limit(p) < 65535 else keep & False)


def test_gradcheck() -> None:
    x, residual = (some(7, 9).double().requires_grad_() for _ in range(2))
    seed = torch.tensor([SEED])
    assert torch.autograd.gradcheck(lambda a, b: ops.dropout(a, 0.3, residual=b, seed=seed), (x, residual))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_second_derivatives(backend: str) -> None:
    with running_on(backend):
        x = some(50).requires_grad_()
        y = ops.dropout(x, 0.5, seed=torch.tensor([SEED]))
        (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, torch.where(y != 0, 48 * x, 0.0).detach())


@needs_core
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    x, residual = some(5, 17, dtype=dtype).requires_grad_(), some(5, 17, dtype=dtype).requires_grad_()
    for added in (None, residual):
        torch.library.opcheck(torch.ops.pyseq.dropout.default, (x, added, 0.3, torch.tensor([SEED])))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_compiles_to_one_graph(backend: str) -> None:
    def total(x: Tensor, seed: Tensor) -> Tensor:
        return ops.dropout(x * 2, 0.3, residual=x, seed=seed)

    def drawn(x: Tensor) -> Tensor:
        return ops.dropout(x, 0.5)

    with running_on(backend):
        torch.compiler.reset()
        compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
        for rows in (5, 6, 7):
            leaf, eager_leaf = (some(rows, 19).requires_grad_() for _ in range(2))
            got, want = compiled(leaf, torch.tensor([rows])), total(eager_leaf, torch.tensor([rows]))
            got.sum().backward()
            want.sum().backward()
            assert torch.equal(got, want) and torch.equal(leaf.grad, eager_leaf.grad)  # type: ignore[arg-type]
        draws = torch.compile(drawn, fullgraph=True, backend="aot_eager")
        x = torch.ones(1000, requires_grad=True)
        first, second = draws(x), draws(x)
        assert not torch.equal(first, second)
        (grad,) = torch.autograd.grad(first.sum(), x)
        assert torch.equal(grad, first)  # the backward pass draws the mask of its forward pass


def test_bad_arguments_are_told() -> None:
    x = torch.ones(3, 4)
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="probability must be in"):
            ops.dropout(x, p)
    with pytest.raises(TypeError, match="floating-point"):
        ops.dropout(torch.ones(3, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match="differ in shape"):
        ops.dropout(x, 0.5, residual=torch.ones(4))
    with pytest.raises(TypeError, match="differ"):
        ops.dropout(x, 0.5, residual=x.double())
    for seed in (torch.tensor([1.0]), torch.tensor([1, 2])):
        with pytest.raises(TypeError, match="one int64 number"):
            ops.dropout(x, 0.5, seed=seed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_what_the_cpu_draws_and_anew_in_every_replay() -> None:
    x = some(1000, 257)
    want = ops.dropout(x, 0.3, seed=torch.tensor([SEED]))
    assert torch.equal(ops.dropout(x.cuda(), 0.3, seed=torch.tensor([SEED]).cuda()).cpu(), want)
    static = x.cuda()
    ops.dropout(static, 0.3)  # compiles the kernel before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.dropout(static, 0.3)
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not torch.equal(first, y)
