"""linear_cross_entropy against the two operations that it stands for, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pyseq.ops as ops
from pyseq.ops.cross_entropy import Kernel, Options, RowResults, reference
from pyseq.ops.linear_cross_entropy import products
from pyseq.ops.linear_cross_entropy import reference as linear_reference
from pyseq.ops.linear_cross_entropy.autograd import Call, LinearCrossEntropy
from pyseq.ops.linear_cross_entropy.run import Wanted
from support.backends import running_on
from support.linear_cross_entropy import IGNORE, case, exact, gradients, ours, relative_error, theirs

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")

# (N, D, V, chunk): one chunk, a short last one, one row a chunk, one class, odd everything, no row.
SIZES = [(6, 8, 11, None), (13, 5, 37, 4), (3, 4, 129, 1), (5, 3, 1, 2), (150, 17, 33, 7), (0, 4, 9, None)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("rows", "dim", "classes", "chunk"), SIZES)
def test_losses_and_gradients(
    rows: int, dim: int, classes: int, chunk: int | None, reduction: str, smoothing: float
) -> None:
    tensors = case(rows, dim, classes)
    want = exact(tensors, reduction, label_smoothing=smoothing)
    got = ours(tensors, reduction, chunk, label_smoothing=smoothing)
    for one, other, peer in zip(got, want, theirs(tensors, reduction, smoothing), strict=True):
        assert one.shape == other.shape and one.dtype == torch.float32
        if rows == 0 and reduction == "mean":
            assert one.isnan().all() == other.isnan().all()
        else:
            assert relative_error(one, other) <= max(1.5 * relative_error(peer, other), 4e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [12, 64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_16_bit(dtype: torch.dtype, reduction: str, chunk: int) -> None:
    """Errors are at most 1.5 times those of torch in that dtype, whose logits are of it, too. Losses are fp32."""
    tensors = case(256, 24, 365, dtype)
    want = exact(tensors, reduction)
    got, peer = ours(tensors, reduction, chunk), theirs(tensors, reduction)
    assert got[0].dtype == torch.float32 and {g.dtype for g in got[1:]} == {dtype}
    for one, other, torch_one in zip(got, want, peer, strict=True):
        assert relative_error(one, other) <= 1.5 * relative_error(torch_one, other)


def test_fp16_means_do_not_vanish() -> None:
    """p / N is below the least fp16 number here. The loss scale brings it back, if it is not lost before."""
    rows, classes = 4096, 512
    features, weight, _, target = case(rows, 4, classes, torch.float16, bias=False)
    with torch.no_grad():
        features.mul_(1e-3)
    loss = ops.linear_cross_entropy(features, weight, target) * 2.0**13
    (got,) = torch.autograd.grad(loss, features)
    want = exact((features, weight, None, target), "mean")[1] * 2.0**13
    assert relative_error(got, want) < 2e-3


def test_rare_classes_do_not_vanish_in_fp16() -> None:
    """With a loss scale, as every fp16 training has one, the gradients of improbable classes are numbers."""
    features = torch.ones(4, 1, dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([0.0, -18.0, 1.0], dtype=torch.float16).view(3, 1).requires_grad_()
    loss = ops.linear_cross_entropy(features, weight, torch.zeros(4).long(), reduction="sum") * 2.0**12
    (got,) = torch.autograd.grad(loss, weight)
    want = exact((features, weight, None, torch.zeros(4).long()), "sum")[2] * 2.0**12
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=0)


@pytest.mark.parametrize("backend", ["cpp-avx512", "cpp-avx2", "cpp-portable", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_back_end(backend: str, dtype: torch.dtype) -> None:
    tensors = case(13, 5, 37, dtype)
    want = exact(tensors, "sum", label_smoothing=0.1)
    with running_on(backend) as device:
        moved = [None if t is None else t.detach().to(device).requires_grad_(i < 3) for i, t in enumerate(tensors)]
        got = ours(tuple(moved), "sum", 4, label_smoothing=0.1)  # type: ignore[arg-type]
    limits = [4e-7] * 4 if dtype == torch.float32 else [2e-2] * 4
    for one, other, limit in zip(got, want, limits, strict=True):
        assert relative_error(one.cpu(), other) <= limit


def test_z_loss_soft_cap_and_class_weights() -> None:
    tensors = case(13, 5, 37)
    class_weight = torch.rand(37)
    given_options: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-2, "soft_cap": 3.0}
    want = exact(tensors, "sum", **given_options, weight=class_weight.double())
    for one, other in zip(ours(tensors, "sum", 4, **given_options, weight=class_weight), want, strict=True):
        assert relative_error(one, other) <= 1e-6
    mean = ours(tensors, "mean", 4, weight=class_weight, label_smoothing=0.1)[0]
    logits = F.linear(*tensors[:3])  # type: ignore[arg-type]
    torch.testing.assert_close(mean, F.cross_entropy(logits, tensors[3], class_weight, label_smoothing=0.1).detach())


def test_sums_and_rows_say_what_cross_entropy_says() -> None:
    features, weight, bias, target = case(40, 6, 9)
    target = target.view(5, 8)
    options: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-3, "ignore_index": IGNORE}
    logits = F.linear(features, weight, bias).view(5, 8, 9)
    tensors = features.view(5, 8, 6), weight, target
    for name in ("sums", "rows"):
        got = getattr(ops, f"linear_cross_entropy_{name}")(*tensors, linear_bias=bias, chunk_rows=7, **options)
        want = getattr(ops, f"cross_entropy_{name}")(logits, target, **options)
        for one, other in zip(got, want, strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            torch.testing.assert_close(one, other)
        assert [part.requires_grad for part in got] == [True, False, False, False]


def test_without_gradients_only_the_logits_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    features, weight, bias, target = case(13, 5, 37)
    for name in ("input_gradient", "add_weight_gradient"):
        monkeypatch.setattr(products, name, lambda *unused: pytest.fail("a gradient was computed"))
    with torch.no_grad():
        loss = ops.linear_cross_entropy(features, weight, target, linear_bias=bias)
    assert not loss.requires_grad
    ops.linear_cross_entropy(features.detach(), weight.detach(), target)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("frozen", range(3), ids=["input", "weight", "bias"])
def test_frozen_tensors_cost_nothing(frozen: int, reduction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = case(13, 5, 37)
    want = exact(tensors, reduction)
    leaves = [tensor.detach().requires_grad_(i != frozen) for i, tensor in enumerate(tensors[:3])]  # type: ignore[union-attr]
    if frozen < 2:
        name = ("input_gradient", "add_weight_gradient")[frozen]
        monkeypatch.setattr(products, name, lambda *unused, **more: pytest.fail("computed for nothing"))
    features, weight, bias = leaves
    loss = ops.linear_cross_entropy(features, weight, tensors[3], linear_bias=bias, reduction=reduction, chunk_rows=4)
    got = gradients(loss, [leaf for leaf in leaves if leaf.requires_grad])
    for one, other in zip(got, [g for i, g in enumerate(want[1:]) if i != frozen], strict=True):
        assert relative_error(one, other) <= 1e-6


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_using_a_loss_more_than_once(reduction: Any) -> None:
    """Two backward passes, a loss in two sums, and a factor: always the right gradient."""
    tensors = case(13, 5, 37)
    _, *want = exact(tensors, reduction)
    loss = ops.linear_cross_entropy(
        tensors[0], tensors[1], tensors[3], linear_bias=tensors[2], reduction=reduction, chunk_rows=4
    )
    first = gradients(loss, tensors[:3], retain_graph=True)
    copies = [grad.clone() for grad in first]
    second = gradients(loss * 3, tensors[:3], retain_graph=True)
    third = gradients(loss * loss + loss, tensors[:3])
    factor = (2 * loss.detach() + 1) if reduction != "none" else None
    for a, kept, b, c, true in zip(first, copies, second, third, want, strict=True):
        assert torch.equal(a, kept), "a later backward pass changed an earlier gradient"
        assert relative_error(a, true) <= 1e-6 and relative_error(b / 3, true) <= 1e-6
        assert factor is None or relative_error(c / factor, true) <= 1e-6
    with pytest.raises(RuntimeError, match="second time"):
        gradients(loss, tensors[:3])


def test_a_backward_pass_after_the_weight_changed_is_an_error() -> None:
    features, weight, _, target = case(13, 5, 37)
    loss = ops.linear_cross_entropy(features, weight, target)
    loss.backward(retain_graph=True)
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_refused() -> None:
    features, weight, _, target = case(13, 5, 37)
    loss = ops.linear_cross_entropy(features, weight, target)
    (grad,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        (loss + grad.square().sum()).backward()
    with ops.backend("torch"):
        loss = ops.linear_cross_entropy(features, weight, target)
        (grad,) = torch.autograd.grad(loss, features, create_graph=True)
        grad.square().sum().backward()


def test_tied_embeddings_get_both_gradients() -> None:
    tokens, target = torch.tensor([1, 5, 5, 2]), torch.tensor([5, 2, 1, 1])

    def gradient(linear: bool) -> Tensor:
        torch.manual_seed(0)
        table = nn.Embedding(7, 4)
        features = table(tokens).tanh()
        if linear:
            loss = ops.linear_cross_entropy(features, table.weight, target, chunk_rows=3)
        else:
            loss = F.cross_entropy(F.linear(features, table.weight), target)
        loss.backward()
        assert table.weight.grad is not None
        return table.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_gradients_accumulate_and_are_not_shared() -> None:
    """The first .grad may be the very tensor of the forward pass; adding to it must not reach another."""
    features, weight, _, target = case(13, 5, 37)
    losses = [ops.linear_cross_entropy(features, weight, target, reduction="sum") for _ in range(2)]
    losses[0].backward()
    once = weight.grad.clone()  # type: ignore[union-attr]
    losses[1].backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_ignored_rows_may_hold_anything() -> None:
    features, weight, bias, target = case(13, 5, 37)
    with torch.no_grad():
        features[target == IGNORE] = float("nan")
        features[1] = float("inf")
    got = ours((features, weight, bias, target), "sum", 4)
    assert all(part.isfinite().all() for part in got)
    assert (got[1][target == IGNORE] == 0).all()


def test_rows_without_any_target() -> None:
    features, weight, bias, _ = case(6, 5, 7)
    target = torch.full((6,), IGNORE)
    for reduction in ("sum", "none"):
        assert all((part == 0).all() for part in ours((features, weight, bias, target), reduction))
    loss, *grads = ours((features, weight, bias, target), "mean")
    assert loss.isnan() and all((grad == 0).all() for grad in grads)


class DoubleKernel(Kernel):
    """The reference as a row kernel, in float64: what gradcheck can look through the chunks with."""

    @staticmethod
    def forward(logits: Tensor, target: Tensor, options: Options, ignore_index: int) -> RowResults:
        rows = reference(logits, target, options, ignore_index)
        return RowResults(rows.loss, rows.nll_loss, rows.correct, torch.ones(len(target), 2))

    @staticmethod
    def loss_and_gradient(
        logits: Tensor, target: Tensor, options: Options, ignore_index: int, row_weight: Tensor | float, grad: Tensor
    ) -> RowResults:
        with torch.enable_grad():
            leaf = logits.clone().requires_grad_()
            out = DoubleKernel.forward(leaf, target, options, ignore_index)
            grad.copy_(torch.autograd.grad((out.loss * row_weight).sum(), leaf)[0])
        return RowResults(*(part.detach() for part in out))


@pytest.mark.parametrize("reduce", [True, False])
def test_gradcheck_of_the_chunks(reduce: bool) -> None:
    *tensors, target = case(7, 3, 5, torch.float64)

    def loss(*leaves: Tensor) -> Tensor:
        options = Options(label_smoothing=0.1, z_loss=0.01)
        call = Call(*leaves, target, None, options, IGNORE, 3, torch.float64)  # type: ignore[arg-type]
        return LinearCrossEntropy.apply(*leaves, call, reduce, Wanted(True, True, True), DoubleKernel)[0]

    assert torch.autograd.gradcheck(loss, tensors)


def test_gradcheck_of_the_reference() -> None:
    *tensors, target = case(7, 3, 5, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *leaves: linear_reference(*leaves, target, Options(label_smoothing=0.1), IGNORE)[0], tensors
    )
    loss = ops.linear_cross_entropy(tensors[0], tensors[1], target)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(tensors[0], tensors[1]), target))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40),
    dim=st.integers(1, 9),
    classes=st.integers(1, 70),
    chunk=st.none() | st.integers(1, 50),
    reduction=st.sampled_from(["sum", "none"]),
    bias=st.booleans(),
)
def test_any_size(rows: int, dim: int, classes: int, chunk: int | None, reduction: Any, bias: bool) -> None:
    tensors = case(rows, dim, classes, bias=bias)
    want = exact(tensors, reduction, label_smoothing=0.2)
    for one, other in zip(ours(tensors, reduction, chunk, label_smoothing=0.2), want, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_results_are_the_same_in_every_run() -> None:
    tensors = case(150, 17, 33)
    first = ours(tensors, "mean", 7)
    assert all(torch.equal(a, b) for a, b in zip(first, ours(tensors, "mean", 7), strict=True))


def test_the_logits_are_never_stored() -> None:
    """Peak memory beyond inputs and gradients stays below 5 % of the logits'."""
    features, weight, _, target = case(4096, 8, 10_000, bias=False)
    target = target.clamp(min=0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        ops.linear_cross_entropy(features, weight, target, reduction="sum").backward()
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    gradients_bytes = (features.numel() + weight.numel()) * 4
    assert 0 < peak - gradients_bytes < 0.05 * 4096 * 10_000 * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    tensors = case(3000, 64, 1111, dtype)
    want = exact(tensors, "mean")
    moved = [t.detach().cuda().requires_grad_(i < 3) for i, t in enumerate(tensors)]  # type: ignore[union-attr]
    for one, other in zip(ours(tuple(moved), "mean", 1024), want, strict=True):  # type: ignore[arg-type]
        assert relative_error(one.cpu(), other) <= (1e-5 if dtype == torch.float32 else 1e-2)
    moved[3][5] = 5000
    assert ops.linear_cross_entropy(*moved[:2], moved[3], linear_bias=moved[2]).isnan()  # type: ignore[misc]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ignored_rows_on_a_gpu_may_hold_anything() -> None:
    features, weight, bias, target = (t.detach().cuda() for t in case(64, 8, 33))  # type: ignore[union-attr]
    features[target == IGNORE] = float("nan")
    leaves = [t.requires_grad_() for t in (features, weight, bias)]
    loss = ops.linear_cross_entropy(features, weight, target, linear_bias=bias)
    assert all(grad.isfinite().all() for grad in gradients(loss.cpu(), leaves))
