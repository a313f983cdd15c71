"""Attention of packed sequences as others call it: torch.compile, autograd, segments; and its errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops import Segments
from support.attention import SEED, some
from support.backends import needs_core, running_on


@needs_core
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["causal", "cross"])
def test_opcheck(p: float, kind: str) -> None:
    case = some([3, 4], [2, 5] if kind == "cross" else None, dim=5)
    query = None if case.query is None else case.query.requires_grad_()
    offsets = [Segments.from_lengths(lengths).offsets for lengths in (case.queries, case.keys)]
    seed = torch.tensor([SEED]) if p else None
    inputs = (case.packed.requires_grad_(), query, *offsets, seed, 4, 5, kind == "causal", 0.5, p)
    torch.library.opcheck(torch.ops.pyseq.attention.default, inputs)
    with torch.no_grad():
        saved = torch.ops.pyseq.attention(*inputs)
        torch.library.opcheck(torch.ops.pyseq.attention_backward.default, (case.grad, *saved, *inputs))


@pytest.mark.parametrize("backend", [pytest.param("torch", marks=pytest.mark.slow), "cpp"])
def test_compiles_to_one_graph(backend: str) -> None:
    def block(kvq: Tensor, query: Tensor, ours: Segments, other: Segments, seed: Tensor) -> Tensor:
        x = ops.self_attention(kvq * 2, ours, causal=True, p=0.3, seed=seed)
        return x + ops.cross_attention(query * x, kvq[:, :2], ours, other, p=0.1, seed=seed)

    with running_on(backend):
        torch.compiler.reset()
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        for lengths in ([5, 3], [6, 8, 2], [9, 1, 4, 3]):
            case = some(lengths)
            segments = Segments.from_lengths(lengths)
            found = []
            for fn in (compiled, block):
                leaves = [t.clone().requires_grad_() for t in (case.packed, case.grad)]
                out = fn(*leaves, segments, segments, torch.tensor([SEED]))
                out.square().sum().backward()
                found.append([out, *(leaf.grad for leaf in leaves)])
            assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_frozen_inputs(backend: str) -> None:
    case = some([4, 6], [3, 5])
    assert case.query is not None
    segments = [Segments.from_lengths(lengths) for lengths in (case.queries, case.keys)]
    with running_on(backend):
        grads = []
        for trained in ((True, True), (True, False), (False, True)):
            leaves = [t.clone().requires_grad_(wanted) for t, wanted in zip((case.query, case.packed), trained)]
            ops.cross_attention(*leaves, *segments).backward(case.grad)
            assert [leaf.grad is not None for leaf in leaves] == list(trained)
            grads.append([leaf.grad for leaf in leaves])
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[2][1])  # type: ignore[arg-type]


def test_segments_of_lengths() -> None:
    segments = Segments.from_lengths(torch.tensor([3, 0, 5]))
    assert segments.offsets.tolist() == [0, 3, 3, 8] and segments.offsets.dtype == torch.int32
    assert segments.longest == 5 and Segments.from_lengths([]) == (torch.zeros(1, dtype=torch.int32), 0)


def offsets_of(*places: int, longest: int = 9) -> Segments:
    return Segments(torch.tensor(places, dtype=torch.int32), longest)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_bad_arguments_are_told(backend: str) -> None:
    kvq, query, kv = torch.ones(9, 3, 2, 4), torch.ones(9, 2, 4), torch.ones(7, 2, 2, 4)
    ours, other = Segments.from_lengths([4, 5]), Segments.from_lengths([3, 4])
    with running_on(backend):
        for bad in (kvq[:, :2], kvq[0], query):
            with pytest.raises(ValueError, match=r"kvq must be \[tokens, 3 \(key, value, query\), heads, D\]"):
                ops.self_attention(bad, ours)
        with pytest.raises(ValueError, match="differ in heads or D"):
            ops.cross_attention(query[:, :1], kv, ours, other)
        with pytest.raises(TypeError, match="differ"):
            ops.cross_attention(query.double(), kv, ours, other)
        with pytest.raises(TypeError, match="floating-point"):
            ops.self_attention(kvq.long(), ours)
        with pytest.raises(ValueError, match="probability must be in"):
            ops.self_attention(kvq, ours, p=1.5)
        with pytest.raises(TypeError, match="one int64 number"):
            ops.self_attention(kvq, ours, p=0.5, seed=torch.tensor([1.0]))
        with pytest.raises(TypeError, match="offsets of segments must be contiguous int32"):
            ops.self_attention(kvq, Segments(torch.tensor([0, 9]), 9))
        for bad in (offsets_of(0, 4, 8), offsets_of(0, 4, 10), offsets_of(1, 4, 9), offsets_of(0, 6, 5, 9)):
            with pytest.raises(ValueError, match=r"must begin with 0, never fall, and end with .* \(9\); they are \["):
                ops.self_attention(kvq, bad)
        with pytest.raises(ValueError, match="a segment of 5 tokens, but says that the longest has 4"):
            ops.self_attention(kvq, ours._replace(longest=4))
        with pytest.raises(ValueError, match="2 segments of queries, but 1 of keys"):
            ops.cross_attention(query, kv, ours, Segments.from_lengths([7]))
        with pytest.raises(ValueError, match="key_segments must begin with 0"):
            ops.cross_attention(query, kv, ours, ours)


@needs_core
def test_a_second_derivative_is_refused() -> None:
    case = some([4])
    with ops.backend("cpp"):
        out = ops.self_attention(case.packed.requires_grad_(), Segments.from_lengths([4]))
        (grad,) = torch.autograd.grad(out.square().sum(), case.packed, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
