"""Every back end of attention of packed sequences, against a float64 oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops import Segments, dispatch
from pyseq.ops.attention.definition import Options, keep_mask
from pyseq.ops.dropout import limit
from pyseq.ops.random import random_halves
from support.accuracy import assert_near, mean_error
from support.backends import is_interpreted, running_on, using_isa

# The interpreter computes with numpy, which warns where nan is the right answer.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["cpp-avx512", "cpp-avx2", "cpp-portable", "triton"]
SEED = 987654321987654321
needs_core = pytest.mark.skipif(not dispatch.status("cpp").available, reason=dispatch.status("cpp").detail)


@dataclass
class Case:
    """Inputs, and the gradient that comes back. Without a query: self-attention."""

    packed: Tensor
    query: Tensor | None
    grad: Tensor
    queries: list[int]
    keys: list[int]
    causal: bool = False
    p: float = 0.0
    scale: float | None = None


def some(
    queries: list[int],
    keys: list[int] | None = None,
    heads: int = 2,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
    causal: bool = False,
    p: float = 0.0,
) -> Case:
    """Self-attention, or with ``keys`` cross-attention, of segments of these lengths."""
    generator = torch.Generator().manual_seed(sum(queries) * 1_000_003 + dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, heads, dim, generator=generator).to(dtype)

    packed = normal(sum(queries), 3) if keys is None else normal(sum(keys), 2)
    query = None if keys is None else normal(sum(queries))
    return Case(packed, query, normal(sum(queries)), queries, queries if keys is None else keys, causal, p)


def run(backend: str, case: Case, seed: int = SEED) -> dict[str, Tensor]:
    """The output, and the gradients of the inputs."""
    with running_on(backend) as device:
        packed = case.packed.detach().to(device).requires_grad_()
        query = None if case.query is None else case.query.detach().to(device).requires_grad_()
        segments = [Segments.from_lengths(lengths, device) for lengths in (case.queries, case.keys)]
        drawn = torch.tensor([seed], device=device)
        if query is None:
            out = ops.self_attention(packed, segments[0], causal=case.causal, scale=case.scale, p=case.p, seed=drawn)
        else:
            out = ops.cross_attention(query, packed, *segments, scale=case.scale, p=case.p, seed=drawn)
        out.backward(case.grad.to(device))
    assert out.dtype == case.packed.dtype and out.shape == case.grad.shape and out.is_contiguous()
    found = {"out": out.detach(), "packed": packed.grad, "query": None if query is None else query.grad}
    return {name: t.cpu() for name, t in found.items() if t is not None}


@functools.cache
def halves_of_seed(count: int) -> Tensor:
    return random_halves(torch.tensor([SEED]), count)


def kept(case: Case, segment: int, head: int) -> Tensor:
    """Which weights of a head of a segment dropout keeps: bool [queries, keys]. Number by number, as documented."""
    heads, across = case.grad.size(1), -(-max(case.keys) // 16)
    first, queries, keys = sum(case.queries[:segment]), case.queries[segment], case.keys[segment]
    halves = halves_of_seed(sum(case.queries) * heads * across * 128)
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    tile = ((first + i // 8) * heads + head) * across + j // 16
    return halves[tile * 128 + i % 8 * 16 + j % 16] > limit(case.p)


def oracle(case: Case) -> dict[str, Tensor]:
    """The definition and its derivative, written out in float64, a head of a segment at a time."""
    packed, grad = case.packed.double(), case.grad.double()
    query = packed[:, 2] if case.query is None else case.query.double()
    scale = query.size(2) ** -0.5 if case.scale is None else case.scale
    out, grad_query, grad_packed = torch.zeros_like(query), torch.zeros_like(query), torch.zeros_like(packed)
    for segment, (queries, keys) in enumerate(zip(case.queries, case.keys)):
        if not queries or not keys:
            continue
        at = slice(sum(case.queries[:segment]), sum(case.queries[: segment + 1]))
        at_keys = slice(sum(case.keys[:segment]), sum(case.keys[: segment + 1]))
        for head in range(query.size(1)):
            q, g = query[at, head], grad[at, head]
            k, v = packed[at_keys, 0, head], packed[at_keys, 1, head]
            scores = q @ k.t() * scale
            if case.causal:
                scores = scores.masked_fill(torch.ones(queries, keys).triu(1).bool(), -torch.inf)
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            factor = kept(case, segment, head) / (1 - case.p) if case.p else torch.ones(())
            out[at, head] = (weights * factor) @ v
            of_weights = g @ v.t() * factor
            of_scores = weights * (of_weights - (weights * of_weights).sum(1, keepdim=True)) * scale
            grad_query[at, head] = of_scores @ k
            grad_packed[at_keys, 0, head] = of_scores.t() @ q
            grad_packed[at_keys, 1, head] = (weights * factor).t() @ g
    if case.query is None:
        grad_packed[:, 2] = grad_query
        return {"out": out, "packed": grad_packed}
    return {"out": out, "packed": grad_packed, "query": grad_query}


# None, one, two; less than, equal to and more than vectors (4, 8, 16) and tiles of products (6 rows); more than a block
# of queries (64); and, in the long ones, more than a block of keys (256).
LENGTHS = [5, 0, 16, 3, 1, 2, 17, 7, 66, 130]
OTHERS = [3, 4, 0, 17, 1, 9, 40, 15, 31, 66]
KINDS: dict[str, Callable[..., Case]] = {
    "self": lambda **options: some(LENGTHS, **options),
    "causal": lambda **options: some(LENGTHS, causal=True, **options),
    "cross": lambda **options: some(LENGTHS, OTHERS, **options),
    "long": lambda **options: some([1, 300], [300, 530], heads=1, **options),
    "long causal": lambda **options: some([2, 530], heads=1, causal=True, **options),
}
# The same for the interpreter, to which a block of scores takes a tenth of a second: blocks of the Triton kernels have
# up to 64 queries and keys.
FEW: dict[str, Callable[..., Case]] = {
    "self": lambda **options: some([5, 0, 17, 66], **options),
    "causal": lambda **options: some([1, 3, 66], causal=True, **options),
    "cross": lambda **options: some([5, 0, 17, 2], [3, 4, 0, 33], **options),
    "long": lambda **options: some([1, 70], [70, 130], heads=1, **options),
    "long causal": lambda **options: some([2, 130], heads=1, causal=True, **options),
}


def case_of(kind: str, backend: str, **options: Any) -> Case:
    return (FEW if is_interpreted(backend) else KINDS)[kind](**options)


@functools.cache
def exact_and_plain(
    kind: str, few: bool, dim: int, dtype: torch.dtype, p: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the oracle and the torch reference find, which is the same for every back end."""
    case = (FEW if few else KINDS)[kind](dim=dim, dtype=dtype, p=p)
    return oracle(case), run("torch", case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_near_that_of_the_reference(backend: str, dtype: torch.dtype, p: float, kind: str) -> None:
    few = is_interpreted(backend)
    if few and (p == 0.0 and kind != "causal" or dtype != torch.float32 and kind in ("self", "long")):
        pytest.skip("the interpreter takes long, and another case covers this")
    dims = ((1, 8, 20, 32, 64, 80, 128) if "long" not in kind else (32, 80)) if not few else (3, 64)
    parts = [exact_and_plain(kind, few, dim, dtype, p) for dim in dims]
    result = [run(backend, case_of(kind, backend, dim=dim, dtype=dtype, p=p)) for dim in dims]
    tolerance: dict[str, Any] = {}
    if few and dtype == torch.bfloat16:  # to which the interpreter truncates
        tolerance = {"ulps": 1.0}
    elif few:
        tolerance = {"error": mean_error, "ulps": 0.0}
    elif backend == "triton" and dtype != torch.float32:  # tensor cores multiply weights and gradients in 16 bits
        tolerance = {"factor": 3.0}
    for name in result[0]:
        want, theirs = (torch.cat([part[i][name].flatten() for part in parts]) for i in (0, 1))
        assert_near(torch.cat([r[name].flatten() for r in result]), theirs, want, name=name, **tolerance)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("causal", [False, True])
def test_each_segment_is_what_torch_computes_of_it(backend: str, causal: bool) -> None:
    case = some(LENGTHS, heads=3, dim=16, causal=causal)
    found = run(backend, case)
    begin = 0
    for length in filter(None, case.queries):
        leaf = case.packed[begin : begin + length].clone().requires_grad_()
        key, value, query = (t.transpose(0, 1) for t in leaf.unbind(1))
        out = F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(0, 1)
        out.backward(case.grad[begin : begin + length])
        assert leaf.grad is not None
        torch.testing.assert_close(found["out"][begin : begin + length], out.detach(), atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(found["packed"][begin : begin + length], leaf.grad, atol=5e-6, rtol=1e-5)
        begin += length


def unaligned(t: Tensor) -> Tensor:
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "unaligned": unaligned,
    "heads first": lambda t: t.transpose(0, -2).contiguous().transpose(0, -2),
    "part of a row": lambda t: torch.cat([t, t], -2)[..., : t.size(-2), :],
    "every other": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_layouts(backend: str, layout: str, kind: str) -> None:
    plain = KINDS[kind](dim=20, p=0.3)
    if is_interpreted(backend):
        plain = some([5, 18], [3, 4] if kind == "cross" else None, dim=20, p=0.3)
    tensors = {"packed": plain.packed, "grad": plain.grad} | ({} if plain.query is None else {"query": plain.query})
    changed = {name: LAYOUTS[layout](t) for name, t in tensors.items()}
    contiguous = {name: t.contiguous() for name, t in changed.items()}
    found, wanted = (run(backend, replace(plain, **parts)) for parts in (changed, contiguous))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("lengths", [([], []), ([0, 0], [0, 0]), ([0], [3]), ([3, 0, 2], [0, 4, 0])], ids=str)
def test_nothing_to_attend_to_gives_zeros(backend: str, lengths: tuple[list[int], list[int]]) -> None:
    found = run(backend, some(*lengths, p=0.3))
    assert all(not t.any() for t in found.values())
    alone = run(backend, some(lengths[0], causal=True))
    assert alone["out"].size(0) == sum(lengths[0]) and all(t.isfinite().all() for t in alone.values())


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["key", "value", "query"])
def test_inf_and_nan_stay_in_their_segment(backend: str, value: float, part: int) -> None:
    case = some([5, 17, 9], dim=20)
    case.packed[5 + 16, part, 1, 3] = value  # the last of its segment, in the last of a few vectors
    found = run(backend, case)
    assert found["packed"][5:22, :, 1].isnan().any()
    for rows in (slice(0, 5), slice(22, 31)):
        assert all(t[rows].isfinite().all() for t in found.values())
    assert found["out"][:, 0].isfinite().all() and found["packed"][:, :, 0].isfinite().all()


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_scores_far_apart(backend: str) -> None:
    """exp of a score alone, or of a distance to it, would be infinity or 0."""
    case = some([40], heads=1, dim=16, causal=True)
    case.packed *= 30.0
    want, theirs, ours = oracle(replace(case, scale=0.01)), run("torch", case), run(backend, case)
    assert want["out"].isfinite().all() and all(t.isfinite().all() for t in ours.values())
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_every_back_end_drops_the_same_weights(backend: str) -> None:
    """Equal scores, and values that tell the keys apart: the output is the weights."""
    queries, keys = [70, 0, 9], [130, 4, 17]
    case = some(queries, keys, heads=2, dim=130, p=0.4)
    assert case.query is not None
    case.query.zero_()
    case.packed[:, 1] = torch.cat([torch.eye(130)[:n] for n in keys])[:, None]
    found = run(backend, case)["out"]
    for segment, (first, count) in {0: (0, 70), 2: (70, 9)}.items():
        for head in range(2):
            keep = kept(case, segment, head)
            weights = found[first : first + count, head, : keys[segment]]
            assert torch.equal(weights != 0, keep)
            torch.testing.assert_close(weights[keep] * keys[segment] * 0.6, torch.ones(int(keep.sum())))


def test_the_rate_is_p_and_heads_and_queries_differ() -> None:
    offsets = Segments.from_lengths([60, 200]).offsets
    keep = keep_mask(torch.tensor([SEED]), offsets, 8, Options(200, 200, False, 1.0, 0.3))
    assert keep.shape == (2, 8, 200, 200)
    assert abs(float((~keep).double().mean()) - 0.3) < 5 * (0.21 / keep.numel()) ** 0.5
    assert keep.flatten(0, 2).unique(dim=0).size(0) == 2 * 8 * 200
    assert keep.transpose(2, 3).flatten(0, 2).unique(dim=0).size(0) == 2 * 8 * 200


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_the_seed_of_torch_repeats_dropout_and_the_ends_of_p(backend: str) -> None:
    case = some([9, 20])
    segments = Segments.from_lengths(case.queries)
    with running_on(backend):

        def draw() -> Tensor:
            torch.manual_seed(3)
            return torch.stack([ops.self_attention(case.packed, segments, p=0.5) for _ in range(3)])

        first = draw()
        assert torch.equal(first, draw()) and not torch.equal(first[0], first[1])
        assert not ops.self_attention(case.packed, segments, p=1.0).any()
        assert torch.equal(ops.self_attention(case.packed, segments, p=1e-6), ops.self_attention(case.packed, segments))


@needs_core
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("kind", ["causal", "cross", "long"])
def test_repeatable_and_independent_of_threads(isa: str, kind: str) -> None:
    case = KINDS[kind](dim=32, p=0.2)
    before = torch.get_num_threads()
    results = []
    with using_isa(isa):
        for threads in (1, 2, 3, 7, 2):
            torch.set_num_threads(threads)
            try:
                results.append(run("cpp", case))
            finally:
                torch.set_num_threads(before)
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4),
    heads=st.integers(1, 3),
    dim=st.integers(1, 40),
    kind=st.sampled_from(["self", "causal", "cross"]),
    p=st.sampled_from([0.0, 0.25]),
)
@settings(max_examples=40, deadline=None)
def test_any_shape(lengths: list[tuple[int, int]], heads: int, dim: int, kind: str, p: float) -> None:
    queries, keys = ([pair[i] for pair in lengths] for i in (0, 1))
    case = some(queries, keys if kind == "cross" else None, heads, dim, causal=kind == "causal", p=p)
    want, theirs, ours = oracle(case), run("torch", case), run("cpp", case)
    for name in ours:
        assert_near(ours[name], theirs[name], want[name], factor=4.0, ulps=4.0, name=name)  # one small draw at a time


@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_gradcheck(kind: str) -> None:
    case = some([3, 0, 4], [2, 1, 0] if kind == "cross" else None, dim=5, dtype=torch.float64, causal=kind == "causal")
    segments = [Segments.from_lengths(lengths) for lengths in (case.queries, case.keys)]
    seed = torch.tensor([SEED])

    def attend(packed: Tensor, query: Tensor | None = None) -> Tensor:
        if query is None:
            return ops.self_attention(packed, segments[0], causal=case.causal, p=0.3, seed=seed)
        return ops.cross_attention(query, packed, *segments, p=0.3, seed=seed)

    leaves = tuple(t.requires_grad_() for t in (case.packed, case.query) if t is not None)
    assert torch.autograd.gradcheck(attend, leaves)


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
