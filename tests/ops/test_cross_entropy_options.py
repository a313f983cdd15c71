"""Class weights, z-loss and soft cap of cross_entropy, with both forms of smoothing, against a float64 oracle.

Each result is had in the three ways that there are: losses and then the gradient, both at once, and both at once with
the gradient in the place of the logits.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops.cross_entropy import KERNELS, Options, TargetOutOfRangeError, reference
from support.backends import running_on

IGNORE = -100
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["cpp-avx512", "cpp-avx2", "cpp-portable"]
WAYS = ["twice", "at once", "in place"]


class Parts(NamedTuple):
    loss: Tensor
    nll: Tensor
    z_loss: Tensor
    grad: Tensor
    correct: Tensor


def oracle(logits: Tensor, target: Tensor, options: Options, row_weight: Tensor) -> Parts:
    """The definition in float64: -sum_v w_v q_v log p_v against the smoothed target distribution q, and lse^2."""
    x = logits.detach().double().requires_grad_()
    active = target != IGNORE
    classes = x.size(1)
    z = x.where(active.unsqueeze(1), 0.0)
    if options.soft_cap:
        z = options.soft_cap * torch.tanh(z / options.soft_cap)
    eps = options.label_smoothing if classes > 1 else 0.0
    onehot = F.one_hot(target.where(active, 0), classes).double()
    other = (1 - onehot) * eps / max(classes - 1, 1)
    q = onehot * (1 - eps) + (other if options.smoothing_form == "fairseq" else eps / classes)
    w = torch.ones(classes, dtype=torch.float64) if options.weight is None else options.weight.double()
    lse = z.logsumexp(dim=1, keepdim=True)
    log_p = z - lse
    z_loss = options.z_loss * lse.squeeze(1) ** 2
    loss = (-(w * q * log_p).masked_fill(q == 0, 0.0).sum(dim=1) + z_loss) * active
    (loss * row_weight).sum().backward()
    nll = -(log_p * onehot).masked_fill(onehot == 0, 0.0).sum(dim=1) * active
    assert x.grad is not None
    return Parts(loss.detach(), nll.detach(), (z_loss * active).detach(), x.grad, (z.argmax(dim=1) == target) & active)


def plain(logits: Tensor, target: Tensor, options: Options, row_weight: Tensor) -> Parts:
    leaf = logits.detach().clone().requires_grad_()
    rows = reference(leaf, target, options, IGNORE)
    (rows.loss * row_weight).sum().backward()
    assert leaf.grad is not None
    return Parts(rows.loss.detach(), rows.nll_loss, rows.z_loss, leaf.grad, rows.correct)


def run(way: str, logits: Tensor, target: Tensor, options: Options, row_weight: Tensor) -> Parts:
    kernel = KERNELS["cpp"]
    if way == "twice":
        out = kernel.forward(logits, target, options, IGNORE)
        grad = kernel.backward(row_weight, logits, target, out.stats, options, IGNORE)
    else:
        before = logits
        logits = logits.clone() if way == "in place" else logits
        grad = logits if way == "in place" else torch.full_like(logits, float("nan"))
        out = kernel.loss_and_gradient(logits, target, options, IGNORE, row_weight, grad)
        again = kernel.forward(before, target, options, IGNORE)
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(out, again))
    return Parts(out.loss, out.nll, out.z_loss(options), grad, out.correct)


def error(result: Tensor, exact: Tensor) -> float:
    same = (result == exact) | (result.isnan() & exact.isnan())
    return float(torch.where(same, 0.0, (result.double() - exact).abs()).max())


def joined(results: list[Parts], part: str) -> Tensor:
    return torch.cat([getattr(result, part).flatten() for result in results])


def some(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1_000_003 + classes)
    logits = torch.randn(rows, classes, generator=generator).mul_(3).to(dtype)
    return logits, torch.randint(classes, (rows,), generator=generator)


def some_weights(classes: int) -> Tensor:
    """From 0 to 2; the first is exactly 0."""
    return (
        torch.rand(classes, generator=torch.Generator().manual_seed(classes)).mul_(2).index_fill(0, torch.tensor(0), 0)
    )


def all_options(classes: int) -> list[Options]:
    weights = (None, some_weights(classes))
    product = itertools.product((0.0, 0.1), ("fairseq", "torch"), (0.0, 1e-2), (0.0, 5.0), weights)
    return [Options(*values) for values in product]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_near_that_of_the_reference(backend: str, way: str, dtype: torch.dtype) -> None:
    # Around the lanes of a vector, four vectors and the blocks of the kernel; the largest error over all sizes counts.
    sizes = (1, 2, 17, 65, 2049, 4200)
    for options in all_options(1):
        exact, expected, result = [], [], []
        for classes in sizes:
            logits, target = some(10, classes, dtype)
            target[2], logits[2] = IGNORE, float("inf")
            weighted = options._replace(weight=None if options.weight is None else some_weights(classes))
            arguments = logits, target, weighted, torch.linspace(0.5, 2.0, 10)
            exact.append(oracle(*arguments))
            expected.append(plain(*arguments))
            with running_on(backend):
                result.append(run(way, *arguments))
        assert all(torch.equal(a.correct, b.correct) for a, b in zip(result, exact))
        for part in ("loss", "nll", "z_loss", "grad"):
            want, torch_got, got = (joined(parts, part) for parts in (exact, expected, result))
            ulp = float(want.abs().max()) * torch.finfo(dtype if part == "grad" else torch.float32).eps
            times = 1.5
            if backend == "cpp-portable":  # without a fused multiply-add, and with a sum rounded to fp32 in between
                times = 2.5 if way == "twice" else 2.0
            allowed = max(times * error(torch_got, want), ulp / 2)
            assert error(got, want) <= allowed, f"{part} {options[:4]}: {error(got, want)}, allowed {allowed}"
            assert (got.view(-1)[want == 0] == 0).all() or part == "z_loss" or options.soft_cap == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_ignored_rows_are_exactly_zero_with_every_option(backend: str, dtype: torch.dtype, bad: float) -> None:
    logits, target = some(5, 300, dtype)
    logits[[0, 2]], target[[0, 2]] = bad, IGNORE
    row_weight = torch.tensor([float("inf"), 1.0, float("nan"), 1.0, 1.0])
    for way, options in itertools.product(WAYS, all_options(300)):
        with running_on(backend):
            parts = run(way, logits, target, options, row_weight)
        for part in parts:
            assert (part[[0, 2]] == 0).all()
        assert parts.grad[[1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_minus_infinity(backend: str) -> None:
    logits, target = some(6, 2100)
    logits[:, ::3] = float("-inf")
    logits[1, :2090] = float("-inf")  # a whole block
    logits[2, 2048:] = float("-inf")
    target[:3], target[3:] = 2099, 2050
    target[2] = 1
    for way, options in itertools.product(WAYS, all_options(2100)):
        if options.weight is not None and options.label_smoothing:
            options = options._replace(weight=options.weight + 0.1)  # 0 times infinity is nan, as in torch
        arguments = logits, target, options, torch.ones(6)
        exact, expected = oracle(*arguments), plain(*arguments)
        with running_on(backend):
            result = run(way, *arguments)
        assert torch.equal(result.loss.isinf(), expected.loss.isinf()) and not result.loss.isnan().any()
        finite = exact.loss.isfinite()
        torch.testing.assert_close(result.loss[finite].double(), exact.loss[finite], rtol=3e-7, atol=1e-6)
        assert error(result.grad, plain(*arguments).grad.double()) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
def test_rows_of_minus_infinity_and_rows_with_nan_are_nan_and_stay_to_themselves(backend: str, way: str) -> None:
    logits, target = some(6, 2100)
    arguments = target, Options(0.1, "fairseq"), torch.ones(6)
    with running_on(backend):
        exact = run(way, logits, *arguments)
        logits[1, 7], logits[2, 2099], logits[4] = float("nan"), float("inf"), float("-inf")
        result = run(way, logits, *arguments)
    for row in (1, 2, 4):
        assert result.loss[row].isnan() and result.grad[row].isnan().all()
    for row in (0, 3, 5):
        assert torch.equal(result.loss[row], exact.loss[row]) and torch.equal(result.grad[row], exact.grad[row])


def test_a_target_out_of_range_leaves_everything_as_it_is() -> None:
    logits, target = some(4, 9)
    for value in (-1, 9, 2**40):
        target[2] = value
        before = logits.clone()
        with pytest.raises(TargetOutOfRangeError, match=f"row 2 is {value}"):
            KERNELS["cpp"].loss_and_gradient(logits, target, Options(), IGNORE, 1.0, logits)
        assert torch.equal(logits, before)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_repeatable_and_independent_of_threads(isa: str, dtype: torch.dtype) -> None:
    logits, target = some(300, 501, dtype)
    target[::7] = IGNORE
    weight = torch.linspace(0.5, 2.0, 300)
    before = torch.get_num_threads()
    for options in (Options(0.1), Options(0.1, "fairseq", 1e-2, 5.0, some_weights(501))):
        results = []
        try:
            for threads in (1, 2, 3, 1):
                torch.set_num_threads(threads)
                with running_on(f"cpp-{isa}"):
                    results += [run(way, logits, target, options, weight) for way in ("at once", "in place")]
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_streaming_stores_write_the_same_bits(isa: str, dtype: torch.dtype) -> None:
    # Above 16 MiB, and at odd addresses.
    classes = 2501
    rows = (17 << 20) // (classes * dtype.itemsize)
    logits, target = some(rows, classes, dtype)
    memory = torch.full((rows * classes + 2,), 7.0, dtype=dtype)
    grad = memory[1:-1].view(rows, classes)
    with running_on(f"cpp-{isa}"):
        KERNELS["cpp"].loss_and_gradient(logits, target, Options(0.1), IGNORE, 1.0, grad)
        for part in (slice(0, 30), slice(rows - 30, rows)):
            small = run("at once", logits[part], target[part], Options(0.1), torch.ones(30))
            assert torch.equal(grad[part], small.grad)
    assert memory[0] == 7.0 and memory[-1] == 7.0


def test_gradients_of_other_strides_and_those_that_do_not_fit() -> None:
    logits, target = some(6, 33)
    want = run("at once", logits, target, Options(0.1), torch.ones(6)).grad
    wide = torch.full((6, 40), 7.0)
    KERNELS["cpp"].loss_and_gradient(logits, target, Options(0.1), IGNORE, 1.0, wide[:, :33])
    assert torch.equal(wide[:, :33], want) and (wide[:, 33:] == 7.0).all()
    several = torch.empty(6, 34), torch.empty(6, 33).double(), torch.empty(33, 6).t(), torch.empty(1, 33).expand(6, 33)
    for bad in several:
        with pytest.raises(ValueError, match="grad"):
            KERNELS["cpp"].loss_and_gradient(logits, target, Options(0.1), IGNORE, 1.0, bad)
    with pytest.raises(ValueError, match="row_weight"):
        KERNELS["cpp"].loss_and_gradient(logits, target, Options(), IGNORE, torch.ones(5), torch.empty(6, 33))


def test_gradcheck_of_every_option() -> None:
    logits, target = some(4, 6)
    target[2] = IGNORE
    leaf = logits.double().requires_grad_()
    for options in all_options(6):
        assert torch.autograd.gradcheck(lambda x, o=options: reference(x, target, o, IGNORE).loss, (leaf,))


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_against_torch(backend: str, reduction: ops.Reduction, smoothing: float) -> None:
    logits, target = some(20, 30)
    target[3], weight = IGNORE, some_weights(30)
    want_leaf, leaf = logits.double().requires_grad_(), logits.clone().requires_grad_()
    arguments = {"reduction": reduction, "label_smoothing": smoothing}
    want = F.cross_entropy(want_leaf, target, weight.double(), **arguments)
    with running_on(backend):
        got = ops.cross_entropy(leaf, target, weight, **arguments)  # type: ignore[arg-type]
        got.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(got.double(), want, rtol=3e-7, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), want_leaf.grad, rtol=2e-6, atol=2e-7)  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_z_loss_is_told_apart(backend: str) -> None:
    logits, target = some(20, 30)
    target[3] = IGNORE
    with running_on(backend):
        without = ops.cross_entropy_sums(logits, target, label_smoothing=0.1)
        for leaf in (logits, logits.clone().requires_grad_()):
            sums = ops.cross_entropy_sums(leaf, target, label_smoothing=0.1, z_loss=1e-2)
            rows = ops.cross_entropy_rows(leaf, target, label_smoothing=0.1, z_loss=1e-2)
            want = 1e-2 * logits.double().logsumexp(dim=1).square().where(target != IGNORE, 0.0)
            torch.testing.assert_close(rows.z_loss.double(), want, rtol=2e-7, atol=0)
            torch.testing.assert_close(sums.z_loss.double(), want.sum(), rtol=2e-7, atol=0)
            torch.testing.assert_close(sums.loss - sums.z_loss, without.loss, rtol=2e-6, atol=0)
            assert torch.equal(sums.nll_loss, without.nll_loss)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_offsets_are_64_bit(way: str) -> None:
    # Only the pages of three short rows of logits, and of their gradient, are ever touched.
    stride, classes = 2**30 + 8, 40
    memory = torch.empty(2 * stride + classes, dtype=torch.bfloat16)
    logits, target = some(3, classes, torch.bfloat16)
    want = run("at once" if way == "in place" else way, logits, target, Options(0.1), torch.ones(3))
    far = memory.as_strided((3, classes), (stride, 1)).copy_(logits)
    grad = (
        far
        if way == "in place"
        else torch.empty(2 * stride + classes, dtype=torch.bfloat16).as_strided((3, classes), (stride, 1))
    )
    kernel = KERNELS["cpp"]
    if way == "twice":
        out = kernel.forward(far, target, Options(0.1), IGNORE)
        kernel.backward(torch.ones(3), far, target, out.stats, Options(0.1), IGNORE, grad)
    else:
        out = kernel.loss_and_gradient(far, target, Options(0.1), IGNORE, 1.0, grad)
    assert torch.equal(out.loss, want.loss) and torch.equal(grad, want.grad)
