"""Every back end of attention of packed sequences, against a float64 oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops import Segments
from pyseq.ops.attention.definition import Options, keep_mask
from support.accuracy import assert_near, mean_error
from support.attention import SEED, Case, kept, oracle, run, some
from support.backends import is_interpreted, needs_core, running_on, using_isa

# The interpreter computes with numpy, which warns where nan is the right answer.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["cpp-avx512", "cpp-avx2", "cpp-portable", "triton"]

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
