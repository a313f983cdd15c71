"""cross_entropy takes what torch.nn.functional.cross_entropy takes, with the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyseq.ops as ops
from support.backends import running_on

BACKENDS = ["torch", "cpp", "triton"]
SHAPES = {"[C]": (7,), "[N, C]": (5, 7), "[N, C, d]": (5, 7, 3), "[N, C, d, e]": (2, 7, 3, 4), "no rows": (0, 7)}


def some(shape: tuple[int, ...], class_dim: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(shape, generator=generator).mul_(2)
    class_dim = min(1, len(shape) - 1) if class_dim is None else class_dim
    others = [size for i, size in enumerate(shape) if i != class_dim % len(shape)]
    return logits, torch.randint(shape[class_dim], others, generator=generator)


def compare(backend: str, logits: Tensor, *arguments: Any, **options: Any) -> None:
    """Hold value and gradient against torch's in float64."""
    want_leaf = logits.detach().double().requires_grad_()
    exact = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    want = F.cross_entropy(want_leaf, *exact, **options)
    want.sum().backward()
    with running_on(backend) as device:
        leaf = logits.detach().to(device).requires_grad_()
        moved = [a.to(device) if isinstance(a, Tensor) else a for a in arguments]
        got = ops.cross_entropy(leaf, *moved, **options)
        got.sum().backward()
    assert got.dtype == torch.float32 and got.shape == want.shape
    torch.testing.assert_close(got.detach().cpu().double(), want.detach(), rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(leaf.grad.cpu().double(), want_leaf.grad, rtol=3e-6, atol=3e-7)  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_shapes(backend: str, shape: tuple[int, ...], reduction: str) -> None:
    logits, target = some(shape)
    compare(backend, logits, target, reduction=reduction, label_smoothing=0.1)
    compare(backend, logits, torch.where(target == 2, 5, target), ignore_index=5, reduction=reduction)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("class_dim", [0, 1, 2, -1, -2])
def test_class_dim(backend: str, class_dim: int) -> None:
    logits, target = some((3, 4, 5), class_dim)
    want = F.cross_entropy(logits.movedim(class_dim, 1), target.double().long(), reduction="none")
    with running_on(backend) as device:
        got = ops.cross_entropy(logits.to(device), target.to(device), reduction="none", class_dim=class_dim)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("older", [(True, None), (False, None), (None, False), (False, True), (True, False)])
def test_positions_and_the_older_words(older: tuple[bool | None, bool | None]) -> None:
    logits, target = some((5, 7))
    size_average, reduce = older
    compare("cpp", logits, target, torch.linspace(0.5, 2, 7), size_average, 2, reduce, "mean", 0.1)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (5, 7, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_probabilities(backend: str, shape: tuple[int, ...], reduction: str, weighted: bool) -> None:
    logits, _ = some(shape)
    target = torch.rand(shape).softmax(dim=min(1, len(shape) - 1))
    weight = torch.linspace(0.5, 2, 7) if weighted else None
    for smoothing in (0.0, 0.1):
        compare(backend, logits, target, weight, reduction=reduction, label_smoothing=smoothing)


def test_probabilities_of_one_class_are_that_class() -> None:
    logits, target = some((5, 7))
    onehot = F.one_hot(target, 7).float()
    options: dict[str, Any] = {
        "label_smoothing": 0.1,
        "z_loss": 1e-2,
        "soft_cap": 4.0,
        "weight": torch.linspace(0.5, 2, 7),
    }
    for form in ("fairseq", "torch"):
        options |= {"smoothing_form": form, "reduction": "none"}
        got, want = ops.cross_entropy(logits, onehot, **options), ops.cross_entropy(logits, target, **options)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_probabilities_are_differentiated_too() -> None:
    logits, _ = some((5, 7))
    target = torch.rand(5, 7).requires_grad_()
    (want,) = torch.autograd.grad(F.cross_entropy(logits, target), target)
    (got,) = torch.autograd.grad(ops.cross_entropy(logits, target), target)
    torch.testing.assert_close(got, want)


def test_a_mean_over_no_rows_and_over_no_weight_is_nan() -> None:
    logits, target = some((4, 7))
    leaf = logits.requires_grad_()
    for weight, classes in ((None, torch.full((4,), -100)), (torch.zeros(7), target)):
        assert ops.cross_entropy(leaf, classes, weight).isnan()
        assert F.cross_entropy(leaf, classes, weight).isnan()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8])
def test_targets_of_every_integer_dtype_are_checked(dtype: torch.dtype) -> None:
    logits, target = some((5, 7))
    want = ops.cross_entropy(logits, target)
    assert torch.equal(ops.cross_entropy(logits, target.to(dtype)), want)
    for value in (7, 100) + ((-1, -128) if dtype.is_signed else ()):
        bad = target.to(dtype)
        bad[3] = value
        for leaf in (logits, logits.clone().requires_grad_()):
            for reduction in ("none", "mean"):
                with pytest.raises(ops.TargetOutOfRangeError, match=f"row 3 is {value}"):
                    ops.cross_entropy(leaf, bad, torch.ones(7), reduction=reduction)  # type: ignore[arg-type]


def test_bad_arguments_are_told() -> None:
    logits, target = some((4, 6))
    wrong: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (ValueError, r"weight is \(5,\)", (logits, target, torch.ones(5)), {}),
        (TypeError, "weight must be floating", (logits, target, torch.ones(6, dtype=torch.long)), {}),
        (ValueError, "meta", (logits, target, torch.ones(6, device="meta")), {}),
        (ValueError, "soft_cap", (logits, target), {"soft_cap": 0.0}),
        (ValueError, "soft_cap", (logits, target), {"soft_cap": float("inf")}),
        (ValueError, "z_loss", (logits, target), {"z_loss": -1.0}),
        (ValueError, "class_dim", (logits, target), {"class_dim": 2}),
        (ValueError, "probabilities", (logits, torch.ones(4, 5)), {}),
        (ValueError, "ignore_index", (logits, torch.ones(4, 6)), {"ignore_index": 1}),
        (ValueError, "inplace", (logits, target), {"inplace": "yes"}),
        (ValueError, "inplace", (logits, target), {"inplace": "yes", "reduction": "none"}),
        (ValueError, "do not fit", (logits.view(2, 2, 6), target.view(2, 2)), {}),
    ]
    for kind, words, arguments, options in wrong:
        with pytest.raises(kind, match=words):
            ops.cross_entropy(*arguments, **options)


def test_every_option_compiles_to_one_graph() -> None:
    weight = torch.linspace(0.5, 2, 7)

    def loss_of(logits: Tensor, target: Tensor) -> Tensor:
        options: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-2, "soft_cap": 4.0, "inplace": "donate"}
        return ops.cross_entropy(logits * 2, target, weight, **options)

    logits, target = some((5, 7))
    torch.compiler.reset()
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    logits.requires_grad_()
    loss, expected = compiled(logits, target), loss_of(logits, target)
    (got,), (want,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_opcheck_with_every_option() -> None:
    logits, target = some((5, 7))
    target[1] = -100
    options = (0.1, "torch", 1e-2, 4.0, torch.linspace(0.5, 2, 7), -100)
    torch.library.opcheck(torch.ops.pyseq.cross_entropy.default, (logits.requires_grad_(), target, *options))
    stats = torch.ops.pyseq.cross_entropy(logits, target, *options)[3]
    arguments = (torch.ones(5), logits.detach(), target, stats, *options)
    torch.library.opcheck(torch.ops.pyseq.cross_entropy_backward.default, arguments)
