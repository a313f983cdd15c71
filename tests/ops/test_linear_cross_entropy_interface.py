"""linear_cross_entropy as others call it: torch.compile, autocast, torch's function of that name; and its errors."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyseq.ops as ops
from pyseq.ops import dispatch
from support.linear_cross_entropy import IGNORE, case, exact, gradients, relative_error


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    gc.collect()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile(reduction: Any, fresh_compiler: None) -> None:
    tensors = case(13, 5, 37)

    def loss(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        arguments = features * 2, weight, tensors[3]
        return ops.linear_cross_entropy(
            *arguments, linear_bias=bias, reduction=reduction, label_smoothing=0.1, chunk_rows=4
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want = loss(*tensors[:3])  # type: ignore[arg-type]
    got = compiled(*tensors[:3])
    assert torch.equal(got, want)
    for one, other in zip(gradients(got, tensors[:3]), gradients(want, tensors[:3]), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, True)])
def test_opcheck(wanted: tuple[bool, bool, bool]) -> None:
    *tensors, target = case(7, 3, 5)
    leaves = [tensor.detach().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]  # type: ignore[union-attr]
    options = 0.1, "torch", 0.0, 0.0, None, IGNORE, 3, torch.float32
    torch.library.opcheck(torch.ops.pyseq.linear_cross_entropy, (*leaves, target, None, *options, *wanted))
    torch.library.opcheck(torch.ops.pyseq.linear_cross_entropy_rows, (*leaves, target, None, *options))
    detached = [leaf.detach() for leaf in leaves]
    arguments = torch.rand(7), *detached, target, None, *options, *wanted
    torch.library.opcheck(torch.ops.pyseq.linear_cross_entropy_backward, arguments)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_autocast_computes_as_linear_does(reduction: Any) -> None:
    tensors = case(64, 16, 33)
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.linear_cross_entropy(
            tensors[0], tensors[1], tensors[3], linear_bias=tensors[2], reduction=reduction, chunk_rows=16
        )
        logits = F.linear(tensors[0], tensors[1], tensors[2])
        peer = F.cross_entropy(logits.float(), tensors[3], reduction=reduction)
    _, *true = exact(tensors, reduction)
    torch.testing.assert_close(got, peer, rtol=1e-6, atol=1e-6)
    for one, other, want in zip(gradients(got, tensors[:3]), gradients(peer, tensors[:3]), true, strict=True):
        assert one.dtype == torch.float32
        assert relative_error(one, want) <= 1.5 * relative_error(other, want)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ops.linear_cross_entropy(tensors[0].bfloat16(), tensors[1], tensors[3])
    assert mixed.dtype == torch.float32


HAS_TORCHS = hasattr(F, "linear_cross_entropy")


@pytest.mark.skipif(not HAS_TORCHS, reason="this torch has no linear_cross_entropy")
def test_it_takes_what_torchs_function_takes() -> None:
    features, weight, bias, target = case(13, 5, 37)
    torchs = getattr(F, "linear_cross_entropy")  # noqa: B009
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=4)
    class_weight = torch.rand(37)
    given_arguments: list[dict[str, Any]] = [
        {},
        {"reduction": "sum", "linear_bias": bias},
        {"reduction": "none", "weight": class_weight},
        {"options": options},
        {"label_smoothing": 0.1, "ignore_index": None},
    ]
    for arguments in given_arguments:
        torch.testing.assert_close(
            ops.linear_cross_entropy(features, weight, target, **arguments),
            torchs(features, weight, target, **arguments),
        )
    one = ops.linear_cross_entropy(features[0], weight, target[0], reduction="none")
    torch.testing.assert_close(one, torchs(features[0], weight, target[0], reduction="none"))
    wide = torch.randn(6, 2, 3, 5)
    positions = torch.randint(0, 6, (13, 2, 3))
    torch.testing.assert_close(ops.linear_cross_entropy(features, wide, positions), torchs(features, wide, positions))
    shares = torch.rand(13, 37).softmax(1)
    torch.testing.assert_close(ops.linear_cross_entropy(features, weight, shares), torchs(features, weight, shares))


INT = torch.zeros(13, dtype=torch.int64)
ERRORS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"input \(13, 5\) and target \(12,\) do not fit", {"target": INT[:12]}),
    (ValueError, r"linear_weight is \(37, 4\).*\[V, 5\]", {"linear_weight": torch.zeros(37, 4)}),
    (ValueError, r"linear_bias is \(36,\)", {"linear_bias": torch.zeros(36)}),
    (ValueError, "weight is .*for each class", {"weight": torch.zeros(36)}),
    (TypeError, "linear_weight is torch.float64: outside autocast", {"linear_weight": torch.zeros(37, 5).double()}),
    (TypeError, "linear_bias is torch.bfloat16", {"linear_bias": torch.zeros(37).bfloat16()}),
    (TypeError, "input must be floating-point", {"input": INT.view(13, 1)}),
    (TypeError, "integer dtype, not torch.bool", {"target": INT.bool()}),
    (ValueError, "linear_weight is on meta", {"linear_weight": torch.zeros(37, 5, device="meta")}),
    (ValueError, "reduction must be", {"reduction": "avg"}),
    (ValueError, "label_smoothing must be", {"label_smoothing": 1.5}),
    (ValueError, "smoothing_form must be", {"smoothing_form": "other"}),
    (ValueError, "soft_cap must be", {"soft_cap": -1.0}),
    (ValueError, "chunk_rows must be", {"chunk_rows": 0}),
    (ValueError, "need a linear_weight", {"linear_weight": torch.zeros(37, 2, 5), "z_loss": 0.1}),
    (ops.TargetOutOfRangeError, "the target of row 2 is 37", {"target": torch.tensor([0, 1, 37, *[0] * 10])}),
]


@pytest.mark.parametrize(("kind", "message", "wrong"), ERRORS, ids=[message[:24] for _, message, _ in ERRORS])
def test_errors(kind: type[Exception], message: str, wrong: dict[str, Any]) -> None:
    right = {"input": torch.zeros(13, 5), "linear_weight": torch.zeros(37, 5), "target": INT}
    with pytest.raises(kind, match=message):
        ops.linear_cross_entropy(**(right | wrong))


def test_a_forced_back_end_without_the_dtype_is_an_error() -> None:
    if not dispatch.status("cpp").available:
        pytest.skip("the core is not built")
    with ops.backend("cpp"), pytest.raises(ops.dispatch.ConfigError, match="no linear_cross_entropy"):
        ops.linear_cross_entropy(torch.zeros(2, 3).double(), torch.zeros(4, 3).double(), torch.zeros(2).long())
