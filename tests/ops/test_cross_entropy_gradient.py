"""The gradient that comes with the loss: who owns it, how often it is handed out, and logits that are donated."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import pyseq.ops as ops
from pyseq.ops import dispatch
from pyseq.ops.cross_entropy.memory import SMALLEST, LentMemory, gradient_like

pytestmark = pytest.mark.skipif(not dispatch.status("cpp").available, reason=dispatch.status("cpp").detail)

ROWS, CLASSES = 300, 1000  # the gradient is large enough to be kept


class Model:
    """Logits from a weight, so that they are not a leaf."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(CLASSES, 4, generator=generator).requires_grad_()
        self.features = torch.randn(ROWS, 4, generator=generator)
        self.target = torch.randint(CLASSES, (ROWS,), generator=generator)
        self.target[7] = -100

    def logits(self) -> Tensor:
        return F.linear(self.features, self.weight)

    def gradient(self, loss: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(loss, self.weight)
        return grad

    def expected(self, make: Callable[[Tensor], Tensor]) -> Tensor:
        return self.gradient(make(self.logits()))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-6 * float(want.abs().max()))


DONATE = pytest.mark.parametrize("inplace", [None, "donate"])


@DONATE
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("factor", [1.0, -3.0, 1e-6])
def test_gradient_of_a_sum_or_mean_times_a_factor(
    inplace: ops.Inplace, reduction: ops.Reduction, factor: float
) -> None:
    model = Model()
    options = {"label_smoothing": 0.1, "reduction": reduction}
    want = model.expected(lambda x: factor * F.cross_entropy(x, model.target, **options))  # type: ignore[arg-type]
    for _ in range(3):
        loss = factor * ops.cross_entropy(model.logits(), model.target, inplace=inplace, **options)  # type: ignore[arg-type]
        close(model.gradient(loss), want)


@DONATE
def test_logits_of_three_dimensions_give_the_same(inplace: ops.Inplace) -> None:
    model = Model()
    want = model.expected(lambda x: F.cross_entropy(x, model.target, reduction="sum"))
    logits = F.linear(model.features.view(10, 30, 4), model.weight)
    close(model.gradient(ops.cross_entropy_sums(logits, model.target.view(10, 30), inplace=inplace).loss), want)


@DONATE
def test_an_incoming_gradient_that_is_not_finite_leaves_ignored_rows_zero(inplace: ops.Inplace) -> None:
    model = Model()
    for factor in (float("inf"), float("nan")):
        seen: list[Tensor] = []
        logits = model.logits()
        logits.register_hook(seen.append)
        model.gradient(ops.cross_entropy(logits, model.target, inplace=inplace) * factor)
        assert (seen[0][7] == 0).all() and not seen[0][8].isfinite().any()


def test_a_second_backward_pass_computes_the_gradient_again() -> None:
    # The first one was handed out; whoever got it may have changed it.
    model = Model()
    leaf = model.logits().detach().requires_grad_()
    loss = ops.cross_entropy(leaf, model.target, reduction="sum")
    loss.backward(retain_graph=True)
    first = leaf.grad.clone()  # type: ignore[union-attr]
    leaf.grad.mul_(7)  # type: ignore[union-attr]
    leaf.grad, handed_out = None, leaf.grad
    loss.backward()
    assert torch.equal(leaf.grad, first) and torch.equal(handed_out, first * 7)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_two_losses_of_the_same_logits() -> None:
    model = Model()
    want = model.expected(lambda x: 3 * F.cross_entropy(x, model.target, reduction="sum"))
    logits = model.logits()
    losses = [ops.cross_entropy(logits, model.target, reduction="sum") for _ in range(2)]
    close(model.gradient(losses[0] + 2 * losses[1]), want)


def test_half_precision_gradients_are_scaled_before_they_are_rounded() -> None:
    # A mean over many rows has gradients below the smallest fp16 number; times a loss scale they are not.
    logits = torch.randn(4000, 50, generator=torch.Generator().manual_seed(1)).mul_(3)
    target = torch.randint(50, (4000,), generator=torch.Generator().manual_seed(2))
    want = logits.half().double().requires_grad_()
    (F.cross_entropy(want, target) * 2.0**16).backward()
    for inplace in (None, "donate"):
        leaf = logits.half().requires_grad_()
        (ops.cross_entropy(leaf * 1, target, inplace=inplace) * 2.0**16).backward()  # type: ignore[arg-type]
        assert float((leaf.grad.double() - want.grad).abs().max()) < 2**-11 * float(want.grad.abs().max())  # type: ignore[union-attr]
        assert ((leaf.grad == 0) == (want.grad.half() == 0)).all()  # type: ignore[union-attr]


@DONATE
def test_second_derivatives_are_refused(inplace: ops.Inplace) -> None:
    model = Model()
    loss = ops.cross_entropy(model.logits(), model.target, inplace=inplace)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        (grad,) = torch.autograd.grad(loss, model.weight, create_graph=True)
        grad.sum().backward()


@DONATE
def test_without_a_gradient_the_logits_are_left_alone(inplace: ops.Inplace) -> None:
    model = Model()
    with torch.no_grad():
        logits = model.logits()
        before = logits.clone()
        ops.cross_entropy(logits, model.target, inplace=inplace)
    assert torch.equal(logits, before) and logits._version == 0


# Donated logits: every use besides is right or an error.


def donated(model: Model, logits: Tensor) -> Tensor:
    return ops.cross_entropy(logits, model.target, reduction="sum", inplace="donate")


def test_a_second_backward_pass_through_donated_logits_is_refused() -> None:
    model = Model()
    loss = donated(model, model.logits())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass through donated"):
        loss.backward()


USES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(dim=1).square().sum(),
    "square": lambda x: x.square().sum(),
    "F.cross_entropy": lambda x: F.cross_entropy(x, torch.zeros(ROWS, dtype=torch.long)),
    "ops.cross_entropy": lambda x: ops.cross_entropy(x, torch.zeros(ROWS, dtype=torch.long)),
    "view": lambda x: x.view(-1)[3] * 2,
    "sum": lambda x: x.sum(),
}


@pytest.mark.parametrize("use", USES)
def test_a_use_after_donation_is_an_error(use: str) -> None:
    for donated_too in (True, False):  # whether the donated loss is differentiated with it
        model = Model()
        logits = model.logits()
        loss = donated(model, logits)
        other = USES[use](logits)
        with pytest.raises(RuntimeError, match="after they had been donated"):
            (loss + other if donated_too else other).backward()


@pytest.mark.parametrize("use", USES)
def test_a_use_before_donation_is_right_or_an_error(use: str) -> None:
    model = Model()
    want = model.expected(lambda x: USES[use](x) + F.cross_entropy(x, model.target, reduction="sum"))
    logits = model.logits()
    both = USES[use](logits) + donated(model, logits)
    if use == "square":  # it saved the logits
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            both.backward()
    else:
        close(model.gradient(both), want)


def test_donation_twice_is_an_error() -> None:
    model = Model()
    logits = model.logits()
    losses = donated(model, logits), donated(model, logits)
    with pytest.raises(RuntimeError, match="after they had been donated"):
        (losses[0] + losses[1]).backward()


def test_what_made_the_logits_and_saved_them_notices() -> None:
    model = Model()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        donated(model, model.logits().tanh()).backward()


def test_modified_after_donation_is_an_error() -> None:
    model = Model()
    logits = model.logits()
    loss = donated(model, logits)
    logits.detach().zero_()
    with pytest.raises(RuntimeError, match="donated logits were modified"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_around_donation(reentrant: bool) -> None:
    model = Model()
    want = model.expected(lambda x: F.cross_entropy(x, model.target, reduction="sum"))

    def loss_of(weight: Tensor) -> Tensor:
        return donated(model, F.linear(model.features, weight))

    close(model.gradient(loss_of(model.weight)), want)
    checkpoint(loss_of, model.weight, use_reentrant=reentrant).backward()
    close(model.weight.grad, want)  # type: ignore[arg-type]


def test_memory_that_is_not_the_callers_is_refused() -> None:
    model = Model()
    logits = model.logits()
    refused = {
        "a leaf": logits.detach().requires_grad_(),
        "a view": logits[:],
        "view of": logits[:1].expand(ROWS, CLASSES),
        "not contiguous": F.linear(model.weight, model.features).t().clone(memory_format=torch.preserve_format),
    }
    for reason, tensor in refused.items():
        before = tensor.detach().clone()
        with pytest.raises(ValueError, match=f"cannot be donated.*{reason}"):
            donated(model, tensor)
        assert torch.equal(tensor, before)
    with pytest.raises(ValueError, match="inplace"):
        ops.cross_entropy(logits, model.target, inplace="yes")  # type: ignore[arg-type]


def test_a_target_out_of_range_leaves_donated_logits_as_they_are() -> None:
    model = Model()
    logits = model.logits()
    before = logits.detach().clone()
    model.target[5] = CLASSES
    with pytest.raises(ops.TargetOutOfRangeError):
        donated(model, logits)
    assert torch.equal(logits, before)


# The memory that is kept.


def test_memory_is_lent_again_when_nobody_holds_it() -> None:
    memory = LentMemory()
    shape = torch.Size((1000, 300))
    first = memory.empty(shape, torch.float32)
    assert first is not None and first.is_contiguous() and first.shape == shape and first.data_ptr() % 64 == 0
    address = first.data_ptr()
    assert memory.empty(shape, torch.float32) is None
    part = first[5]
    del first
    assert memory.empty(shape, torch.float32) is None  # a view holds the storage
    del part
    again = memory.empty(torch.Size((500, 1100)), torch.bfloat16)
    assert again is not None and again.data_ptr() == address and again.dtype == torch.bfloat16
    del again
    larger = memory.empty(torch.Size((1000, 900)), torch.float32)
    assert larger is not None
    larger.zero_()
    del larger
    much_smaller = memory.empty(torch.Size((10, 10)), torch.float32)
    assert much_smaller is not None and memory._block is not None and memory._block.size < 1000


def test_gradients_that_are_held_do_not_share_memory() -> None:
    like = torch.empty(SMALLEST)
    held = [gradient_like(like).fill_(i) for i in range(3)]
    assert all((tensor == i).all() for i, tensor in enumerate(held))


def test_threads_get_their_own_gradients() -> None:
    model = Model()
    want = {
        scale: model.expected(lambda x, s=scale: s * F.cross_entropy(x, model.target, reduction="sum"))
        for scale in (1, 2)
    }
    wrong: list[str] = []

    def train(scale: int) -> None:
        for _ in range(40):
            got = model.gradient(scale * ops.cross_entropy(model.logits(), model.target, reduction="sum"))
            if not torch.allclose(got, want[scale], rtol=1e-4, atol=1e-4):
                wrong.append(f"thread {scale}")

    threads = [threading.Thread(target=train, args=(scale,)) for scale in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
