"""Every back end of cross_entropy against a float64 oracle, over one table of cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops import dispatch
from pyseq.ops.cross_entropy import Options, reference
from support.backends import is_interpreted, running_on

# The interpreter computes with numpy, which warns where nan is the right answer.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")

IGNORE = -100
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["cpp-avx512", "cpp-avx2", "cpp-portable", "triton"]


@dataclass
class Result:
    loss: Tensor
    nll: Tensor
    correct: Tensor
    grad: Tensor


def oracle(logits: Tensor, target: Tensor, options: Options, weight: Tensor) -> Result:
    """The definition in float64: -sum_v q_v log p_v against the smoothed target distribution q, and grad p - q."""
    x = logits.double()
    classes = x.size(1)
    active = target != IGNORE
    y = target.where(active, 0)
    onehot = F.one_hot(y, classes).double()
    if classes == 1:
        q = onehot
    elif options.smoothing_form == "fairseq":
        q = onehot * (1 - options.label_smoothing) + (1 - onehot) * options.label_smoothing / (classes - 1)
    else:
        q = onehot * (1 - options.label_smoothing) + options.label_smoothing / classes
    shifted = x - x.max(dim=1, keepdim=True).values
    log_p = shifted - shifted.exp().sum(dim=1, keepdim=True).log()
    terms = torch.where(q == 0, 0.0, q * log_p)
    first_max = torch.tensor([row.tolist().index(row.max()) if not row.isnan().any() else -1 for row in x])
    return Result(
        loss=torch.where(active, -terms.sum(dim=1), 0.0),
        nll=torch.where(active, -log_p.gather(1, y.unsqueeze(1)).squeeze(1), 0.0),
        correct=active & (first_max == target),
        grad=torch.where(active.unsqueeze(1), (log_p.exp() - q) * weight.double().unsqueeze(1), 0.0),
    )


def run(backend: str, logits: Tensor, target: Tensor, options: Options, weight: Tensor) -> Result:
    """A back end's losses, and its gradient of ``(weight * loss).sum()``."""
    with running_on(backend) as device:
        leaf = logits.detach().to(device).requires_grad_()
        rows = ops.cross_entropy_rows(
            leaf,
            target.to(device),
            label_smoothing=options.label_smoothing,
            smoothing_form=options.smoothing_form,  # type: ignore[arg-type]
            ignore_index=IGNORE,
        )
        (rows.loss * weight.to(device)).sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == logits.dtype and rows.loss.dtype == torch.float32
    return Result(rows.loss.detach().cpu(), rows.nll_loss.cpu(), rows.correct.cpu(), leaf.grad.cpu())


def error(result: Tensor, exact: Tensor) -> float:
    same = (result == exact) | (result.isnan() & exact.isnan())  # equal infinities differ by nan
    return float(torch.where(same, 0.0, (result.double() - exact).abs()).max()) if exact.numel() else 0.0


def bound(backend: str, part: str, dtype: torch.dtype, exact: Tensor, torch_error: float) -> float:
    """At most 1.5 times the error of the torch reference, or the rounding to ``dtype`` that no result escapes."""
    finite = exact[exact.isfinite()]
    ulp = float(finite.abs().max()) * torch.finfo(dtype).eps if finite.numel() else 0.0
    if backend == "triton" and dtype == torch.bfloat16 and dispatch.interpreting():
        return ulp  # the interpreter truncates where a GPU rounds
    if backend == "cpp-portable" and part == "grad":
        return max(2.0 * torch_error, ulp / 2)  # without a fused multiply-add the exponential rounds more often
    return max(1.5 * torch_error, ulp / 2)


def check(backend: str, options: Options, inputs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Hold a back end's largest error over all inputs, which have one dtype, against that of the torch reference."""
    exact, plain, result = [], [], []
    for logits, target in inputs:
        weight = torch.linspace(0.5, 2.0, len(target)) if len(target) > 1 else torch.ones(len(target))
        exact.append(oracle(logits, target, options, weight))
        plain.append(run("torch", logits, target, options, weight))
        result.append(run(backend, logits, target, options, weight))
    assert all(torch.equal(a.correct, b.correct) for a, b in zip(result, exact))
    for part in ("loss", "nll", "grad"):
        want, torch_got, got = (torch.cat([getattr(r, part).flatten() for r in rs]) for rs in (exact, plain, result))
        torch_error = error(torch_got, want)
        dtype = logits.dtype if part == "grad" else torch.float32
        allowed = bound(backend, part, dtype, want, torch_error)
        assert error(got, want) <= allowed, f"{part}: {error(got, want)}, torch {torch_error}, allowed {allowed}"


def some(rows: int, classes: int, dtype: torch.dtype = torch.float32, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1_000_003 + classes)
    logits = torch.randn(rows, classes, generator=generator).mul_(scale).to(dtype)
    return logits, torch.randint(classes, (rows,), generator=generator)


# One less than, equal to and one more than the lanes of each vector and four of them (4, 8, 16, 64), and the blocks of
# the kernels (1024, 2048); and the classes of a real vocabulary.
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1000, 1025, 2047, 2048, 2049, 9736]
SIZES_INTERPRETED = [1, 2, 3, 17, 64, 1025, 2049, 9736]  # a row takes the interpreter 20 ms and more


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [Options(0.0, "fairseq"), Options(0.1, "fairseq"), Options(0.2, "torch")])
def test_error_is_near_that_of_the_reference(backend: str, dtype: torch.dtype, options: Options) -> None:
    def inputs() -> Iterator[tuple[Tensor, Tensor]]:
        for classes in SIZES_INTERPRETED if is_interpreted(backend) else SIZES:
            logits, target = some(3 if is_interpreted(backend) else 8, classes, dtype)
            target[1] = IGNORE
            yield logits, target

    check(backend, options, inputs())


def unaligned(logits: Tensor) -> Tensor:
    """Rows that begin at odd addresses and do not touch."""
    rows, classes = logits.shape
    memory = torch.full((1 + rows * (classes + 3),), float("nan"), dtype=logits.dtype)
    view = memory[1:].view(rows, classes + 3)[:, :classes]
    return view.copy_(logits)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "unaligned": unaligned,
    "transposed": lambda x: x.t().contiguous().t(),
    "every other class": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "every other row": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "one row repeated": lambda x: x[:1].expand_as(x),
    "reversed rows": lambda x: x.flip(0),
    "no rows": lambda x: x[:0],
    "one row": lambda x: x[:1],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    for dtype in DTYPES:
        logits, target = some(6 if is_interpreted(backend) else 30, 101, dtype)
        logits = LAYOUTS[layout](logits)
        check(backend, Options(0.1, "fairseq"), [(logits, target[: len(logits)])])


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "large offset": lambda x: x + 1000.0,  # a loss from V * logsumexp - sum(x) would cancel
    "huge": lambda x: x * 1e4,
    "tiny": lambda x: x * 1e-30,
    "all equal": lambda x: torch.zeros_like(x),
    "one certain class": lambda x: x.index_fill(1, torch.tensor([3]), 40.0),
    "some -inf": lambda x: x.masked_fill(torch.arange(x.size(1)) % 3 == 0, float("-inf")),
    "-inf for whole blocks": lambda x: x.masked_fill(torch.arange(x.size(1)) < x.size(1) - 5, float("-inf")),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("amount", [0.0, 0.1])
def test_values(backend: str, values: str, amount: float) -> None:
    inputs = [some(12, 70), some(4, 4100)]
    check(backend, Options(amount, "fairseq"), [(VALUES[values](logits), target) for logits, target in inputs])


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_not_finite_stay_to_themselves(backend: str, dtype: torch.dtype) -> None:
    logits, target = some(6, 300, dtype)
    exact = run("torch", logits, target, Options(0.1, "fairseq"), torch.ones(6))
    logits[1, 7], logits[2, 200], logits[3] = float("nan"), float("inf"), float("-inf")
    result = run(backend, logits, target, Options(0.1, "fairseq"), torch.ones(6))
    for row in (1, 2, 3):
        assert result.loss[row].isnan() and result.nll[row].isnan() and result.grad[row].isnan().all()
    for row in (0, 4, 5):
        torch.testing.assert_close(result.loss[row], exact.loss[row], rtol=1e-6, atol=0)
        assert result.grad[row].isfinite().all()


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_ignored_rows_are_exactly_zero_whatever_their_logits(backend: str, dtype: torch.dtype, bad: float) -> None:
    logits, target = some(4, 77, dtype)
    logits[[0, 2]] = bad
    target[[0, 2]] = IGNORE
    weight = torch.tensor([float("inf"), 1.0, float("nan"), 1.0])  # nor does the incoming gradient matter
    result = run(backend, logits, target, Options(0.1, "fairseq"), weight)
    for row in (0, 2):
        assert result.loss[row] == 0 and result.nll[row] == 0 and not result.correct[row]
        assert (result.grad[row] == 0).all()
    assert (result.grad[[1, 3]] != 0).any(dim=1).all()


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_correct_is_argmax_with_ties_and_nans(backend: str) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randint(0, 3, (96, 37), generator=generator).float()  # every row has ties
    logits[::4] = logits[::4].masked_fill(torch.rand(24, 37, generator=generator) < 0.05, float("nan"))
    logits[1::8, 9], logits[2::8] = float("inf"), float("-inf")
    target = logits.argmax(dim=1)
    target[::3] = torch.randint(37, (32,), generator=generator)
    result = run(backend, logits, target, Options(0.0, "fairseq"), torch.ones(96))
    assert torch.equal(result.correct, logits.argmax(dim=1) == target)
    assert 0 < result.correct.sum() < 96


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_offsets_are_64_bit(backend: str) -> None:
    # Only the pages of three short rows are ever touched.
    stride, classes = 2**30 + 8, 40
    memory = torch.empty(2 * stride + classes, dtype=torch.bfloat16)
    logits, target = some(3, classes, torch.bfloat16)
    far = memory.as_strided((3, classes), (stride, 1)).copy_(logits)
    with running_on(backend) as device:
        if device.type != "cpu":
            pytest.skip("4 GiB would be copied")
        got = ops.cross_entropy(far, target, reduction="none")
        want = ops.cross_entropy(logits, target, reduction="none")
    assert torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_classes(backend: str) -> None:
    check(backend, Options(0.1, "fairseq"), [some(3, 70_001)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_bitwise_repeatable_and_independent_of_threads(dtype: torch.dtype, isa: str) -> None:
    logits, target = some(700, 501, dtype)
    target[::7] = IGNORE
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2, 1):
            torch.set_num_threads(threads)
            results.append(run(f"cpp-{isa}", logits, target, Options(0.1, "fairseq"), torch.ones(700)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for part in ("loss", "nll", "correct", "grad"):
            assert torch.equal(getattr(results[0], part), getattr(other, part))


@pytest.mark.parametrize("backend", ["cpp-avx512", "cpp-avx2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_gradients_bypass_the_cache_with_the_same_bits(backend: str, dtype: torch.dtype) -> None:
    # Above 16 MiB gradients are written with streaming stores, whose alignment differs from row to row.
    rows, classes = (18 << 20) // (1501 * torch.finfo(dtype).bits // 8), 1501
    logits, target = some(rows, classes, dtype)
    whole = run(backend, logits, target, Options(0.1, "fairseq"), torch.ones(rows))
    for part in (slice(0, 40), slice(rows - 40, rows)):
        small = run(backend, logits[part], target[part], Options(0.1, "fairseq"), torch.ones(40))
        assert torch.equal(whole.grad[part], small.grad)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 1, 3)])
def test_shapes_and_reductions_against_torch(backend: str, shape: tuple[int, ...]) -> None:
    classes = 23
    logits, _ = some(6, classes)
    logits = logits[0] if shape == () else logits.view(*shape, classes)
    target = torch.arange(6)[: max(1, torch.Size(shape).numel())].view(shape)
    if shape:
        target.view(-1)[4] = 1
    for reduction in ("none", "sum", "mean"):
        options = {"reduction": reduction, "ignore_index": 1, "label_smoothing": 0.1}
        with running_on(backend) as device:
            got = ops.cross_entropy(logits.to(device), target.to(device), class_dim=-1, **options)  # type: ignore[arg-type]
        want = F.cross_entropy(logits.reshape(-1, classes).double(), target.view(-1), **options)  # type: ignore[arg-type]
        assert got.shape == (shape if reduction == "none" else ())
        torch.testing.assert_close(got.cpu().view(-1).double(), want.view(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_sums(backend: str) -> None:
    logits, target = some(12, 31)
    target[:4], target[5] = logits[:4].argmax(dim=1), IGNORE
    exact = oracle(logits, target, Options(0.1, "fairseq"), torch.ones(12))
    with running_on(backend) as device:
        sums = ops.cross_entropy_sums(logits.to(device).requires_grad_(), target.to(device), label_smoothing=0.1)
    assert all(value.shape == () and value.device.type == device.type for value in sums)
    assert sums.loss.dtype == sums.nll_loss.dtype == torch.float32 and sums.n_correct.dtype == torch.int64
    assert sums.loss.requires_grad and not sums.nll_loss.requires_grad
    torch.testing.assert_close(sums.loss.detach().cpu().double(), exact.loss.sum(), rtol=2e-7, atol=0)
    torch.testing.assert_close(sums.nll_loss.cpu().double(), exact.nll.sum(), rtol=2e-7, atol=0)
    assert sums.n_correct.cpu() == exact.correct.sum()


def test_sums_of_many_rows_do_not_lose_bits() -> None:
    logits, target = some(200_000, 4)
    sums = ops.cross_entropy_sums(logits, target)
    exact = F.cross_entropy(logits.double(), target, reduction="sum")
    torch.testing.assert_close(sums.loss.double(), exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("form", ["fairseq", "torch"])
def test_gradcheck_of_the_reference(form: str) -> None:
    logits, target = some(5, 7)
    target[2] = IGNORE
    leaf = logits.double().requires_grad_()
    for smoothing in (Options(0.0, form), Options(0.3, form)):
        assert torch.autograd.gradcheck(lambda x, s=smoothing: reference(x, target, s, IGNORE)[0], (leaf,))


def test_target_out_of_range_gives_nan_where_looking_would_wait() -> None:
    logits, target = some(5, 9)
    target[3] = 9
    result = run("triton", logits, target, Options(0.1, "fairseq"), torch.ones(5))
    assert torch.equal(result.loss.isnan(), torch.arange(5) == 3)
    assert result.grad[3].isnan().all() and result.grad[[0, 1, 2, 4]].isfinite().all()


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_are_rounded_to_nearest_even(isa: str, dtype: torch.dtype) -> None:
    # p = 1/2, so that the gradient is half the weight: every number, the midpoint to the next one, and just beside it.
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    following = (torch.arange(1 << 16, dtype=torch.int32) + 1).to(torch.int16).view(dtype).float()
    middle = numbers + (following - numbers) / 2
    infinity = torch.tensor(float("inf"))
    wanted = torch.cat([numbers, middle, middle.nextafter(infinity), middle.nextafter(-infinity)])
    wanted = wanted[wanted.abs() < 1e38]
    logits, target = torch.zeros(len(wanted), 2, dtype=dtype), torch.zeros(len(wanted), dtype=torch.long)
    result = run(f"cpp-{isa}", logits, target, Options(0.0, "fairseq"), wanted * 2)
    assert torch.equal(result.grad[:, 1], wanted.to(dtype))
    assert torch.equal(result.grad[:, 0], (-wanted).to(dtype))  # the target, which takes the scalar conversion
    nan = run(f"cpp-{isa}", logits[:40], target[:40], Options(0.0, "fairseq"), torch.full((40,), float("nan")))
    assert nan.grad.isnan().all()


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_vector_exponential_is_within_one_ulp(isa: str) -> None:
    # Row {0, t}, gradient p_1 of weight s = 1 + e^t: the kernel's exp(t) times s / s.
    t = -torch.cat([torch.linspace(0, 87, 40_000), torch.rand(40_000) * 2])
    logits = torch.stack([torch.zeros_like(t), t], dim=1)
    exact = t.double().exp()
    target, weight = torch.zeros(len(t), dtype=torch.long), torch.ones(len(t))
    result = run(f"cpp-{isa}", logits, target, Options(0.0, "fairseq"), weight)
    exponential = result.grad[:, 1].double() * (1 + exact)
    # One ulp of the exponential, and the roundings of 1 / sum and of the product.
    assert float(((exponential - exact) / exact).abs().max()) < 2.2 * torch.finfo(torch.float32).eps
