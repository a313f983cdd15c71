"""cross_entropy as a citizen of torch: autograd, torch.library, torch.compile; and what it says of bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyseq.ops as ops
from pyseq.errors import UserError
from support.backends import needs_core

BACKENDS = ["torch", pytest.param("cpp", marks=needs_core)]


def some(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + classes)
    return torch.randn(rows, classes, generator=generator).to(dtype), torch.randint(
        classes, (rows,), generator=generator
    )


def test_mean_of_no_rows_is_nan_as_in_torch() -> None:
    logits, target = some(3, 5)
    assert ops.cross_entropy(logits, torch.full_like(target, 1), ignore_index=1).isnan()


def test_float64_runs_on_the_reference_and_twice() -> None:
    logits, target = some(4, 6)
    leaf = logits.double().requires_grad_()
    loss = ops.cross_entropy(leaf, target)
    assert loss.dtype == torch.float64
    assert torch.autograd.gradgradcheck(lambda x: ops.cross_entropy(x, target), (leaf,))


@needs_core
def test_second_derivative_is_refused() -> None:
    logits, target = some(4, 6)
    with ops.backend("cpp"):
        leaf = logits.requires_grad_()
        (grad,) = torch.autograd.grad(ops.cross_entropy(leaf, target), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once only"):
            grad.sum().backward()


@needs_core
def test_logits_changed_between_forward_and_backward_are_noticed_where_they_are_read_again() -> None:
    logits, target = some(4, 6)
    with ops.backend("cpp"):
        x = logits.requires_grad_() * 1
        loss = ops.cross_entropy(x, target, reduction="none").sum()
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        (want,) = torch.autograd.grad(ops.cross_entropy(logits, target), logits)
        x = logits * 1
        loss = ops.cross_entropy(x, target)
        x.add_(1)
        assert torch.equal(torch.autograd.grad(loss, logits, retain_graph=True)[0], want)  # it was there already
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, logits)


@needs_core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    logits, target = some(5, 17, dtype)
    target[1] = -100
    options = (0.1, "fairseq", 0.0, 0.0, None, -100)
    torch.library.opcheck(torch.ops.pyseq.cross_entropy.default, (logits.requires_grad_(), target, *options))
    stats = torch.ops.pyseq.cross_entropy(logits, target, *options)[3]
    arguments = (torch.ones(5), logits.detach(), target, stats, *options)
    torch.library.opcheck(torch.ops.pyseq.cross_entropy_backward.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_to_one_graph(backend: str) -> None:
    def total(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(ops.cross_entropy_sums(logits * 2, target, label_smoothing=0.1))  # type: ignore[return-value]

    with ops.backend(backend):
        torch.compiler.reset()
        compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
        for rows, classes in ((5, 17), (6, 19), (7, 23)):  # the third has sizes that the graph takes as symbols
            logits, target = some(rows, classes)
            target[1] = -100
            eager_leaf, leaf = logits.clone().requires_grad_(), logits.clone().requires_grad_()
            want, got = total(eager_leaf, target), compiled(leaf, target)
            want[0].backward()
            got[0].backward()
            assert all(torch.equal(a, b) for a, b in zip(want, got))
            # The graph reads the logits again for their gradient: its exponentials may be rounded otherwise.
            torch.testing.assert_close(leaf.grad, eager_leaf.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [-1, 9, 2**40, -(2**40)])
def test_target_out_of_range_is_told_with_row_and_value(backend: str, value: int) -> None:
    logits, target = some(5, 9)
    target[3] = value
    words = f"row 3 is {value}: .*\\[0, 9\\)"
    with ops.backend(backend), pytest.raises(ops.TargetOutOfRangeError, match=words) as caught:
        ops.cross_entropy(logits, target)
    assert isinstance(caught.value, UserError) and isinstance(caught.value, IndexError)


def test_bad_arguments_are_told() -> None:
    logits, target = some(4, 6)
    wrong: list[tuple[type[Exception], str, tuple[Tensor, Tensor], dict[str, object]]] = [
        (ValueError, "do not fit", (logits, target[:3]), {}),
        (ValueError, "do not fit", (logits, target.view(4, 1)), {}),
        (ValueError, "0-d", (logits.sum(), target), {}),
        (TypeError, "floating-point", (logits.long(), target), {}),
        (ValueError, "integer", (logits, target.float()), {}),
        (ValueError, "meta", (logits, target.to("meta")), {}),
        (ValueError, "label_smoothing", (logits, target), {"label_smoothing": 1.5}),
        (ValueError, "smoothing_form", (logits, target), {"smoothing_form": "other"}),
        (ValueError, "reduction", (logits, target), {"reduction": "median"}),
    ]
    for kind, words, arguments, options in wrong:
        with pytest.raises(kind, match=words):
            ops.cross_entropy(*arguments, **options)  # type: ignore[arg-type]


def test_targets_of_any_integer_dtype() -> None:
    logits, target = some(4, 6)
    want = ops.cross_entropy(logits, target)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(ops.cross_entropy(logits, target.to(dtype)), want)
