"""Every back end of grad_norm against a float64 oracle; clipping; what it says of bad input."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyseq.ops as ops
from support.backends import is_interpreted, needs_core, running_on

BACKENDS = ["torch", "cpp-avx512", "cpp-avx2", "cpp-portable", "triton", "cuda"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# One less than, equal to and one more than the lanes of each vector and four of them (4, 8, 16, 64), and a block;
# and nothing.
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000, 16383, 16384, 16385, 40_000]
SIZES_INTERPRETED = [0, 1, 17, 129, 1000, 16385]


def some(sizes: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def exact_norm(tensors: list[Tensor]) -> float:
    """Without rounding before the root."""
    return math.sqrt(math.fsum(x * x for tensor in tensors for x in tensor.double().flatten().tolist()))


def norm_on(backend: str, tensors: list[Tensor], **options: float) -> ops.GradNorm:
    with running_on(backend) as device:
        found = ops.grad_norm([tensor.to(device) for tensor in tensors], **options)
    return ops.GradNorm(*(value.cpu() for value in found))


def close_to(value: float) -> object:
    """Within the rounding to fp32, and the little that sums in fp64 are off."""
    return pytest.approx(value, rel=0.52 * torch.finfo(torch.float32).eps, abs=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_is_right_to_the_last_bit(backend: str, dtype: torch.dtype) -> None:
    sizes = SIZES_INTERPRETED if is_interpreted(backend) else SIZES
    for tensors in [some([size], dtype) for size in sizes] + [some(sizes, dtype)]:
        exact = exact_norm(tensors)
        norm, factor, found_inf = norm_on(backend, tensors)
        assert float(norm) == close_to(exact)
        assert float(factor) == 1 and float(found_inf) == 0
        with running_on(backend) as device:
            squares = ops.sum_of_squares([tensor.to(device) for tensor in tensors])
        assert squares.dtype == torch.float64 and squares.shape == ()
        assert float(squares) == pytest.approx(exact**2, rel=1e-12, abs=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_0d_fp32_views_of_one_buffer(backend: str) -> None:
    found = norm_on(backend, some([3, 5], torch.bfloat16), max_norm=1.0)
    assert all(value.shape == () and value.dtype == torch.float32 for value in found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_factor(backend: str) -> None:
    tensors = some([5, 1000])
    norm = exact_norm(tensors)
    for scale in (1.0, 0.5, 1e-3, -2.0):
        for max_norm in (0.0, 0.1, 1e9):
            want = scale * min(1.0, max_norm / (abs(scale) * norm + 1e-6))
            for given_scale in (scale, torch.tensor(scale), torch.tensor([scale], dtype=torch.float64)):
                found = norm_on(backend, tensors, max_norm=max_norm, scale=given_scale)  # type: ignore[arg-type]
                assert float(found.norm) == pytest.approx(abs(scale) * norm, rel=2e-7)
                assert float(found.factor) == pytest.approx(want, rel=2e-7)
        assert float(norm_on(backend, tensors, scale=scale).factor) == pytest.approx(scale, rel=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes_in_one_list(backend: str) -> None:
    tensors = [some([100 + i], dtype)[0] for i, dtype in enumerate(DTYPES * 2)]
    assert float(norm_on(backend, tensors).norm) == close_to(exact_norm(tensors))


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_of_bf16_is_not_rounded_to_bf16(backend: str) -> None:
    tensors = some([100, 1000], torch.bfloat16)
    norm = norm_on(backend, tensors).norm
    assert float(norm) == close_to(exact_norm(tensors)) and norm.bfloat16().float() != norm
    assert torch.nn.utils.get_total_norm(tensors).dtype == torch.bfloat16  # what there is to do better than


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e25, 1e19, 1e-25, 1e-40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_squares_do_not_overflow_or_vanish(backend: str, size: float, dtype: torch.dtype) -> None:
    tensors = [torch.full((20_000,), size).to(dtype), torch.full((7,), -size).to(dtype)]
    found = norm_on(backend, tensors, max_norm=1.0)
    assert float(found.norm) == pytest.approx(exact_norm(tensors), rel=1e-6, abs=1e-44)
    assert float(found.norm) > 0 and float(found.found_inf) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_beyond_fp32_is_inf(backend: str) -> None:
    found = norm_on(backend, [torch.full((100,), 3e38)], max_norm=1.0)
    assert float(found.norm) == math.inf and float(found.found_inf) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_number_that_is_not_finite_is_found(backend: str, bad: float, dtype: torch.dtype) -> None:
    for place in (0, 63, 20_000):
        tensors = some([5, 20_001], dtype)
        tensors[1][place] = bad
        norm, _, found_inf = norm_on(backend, tensors, max_norm=1.0)
        assert float(found_inf) == 1
        assert norm.isnan() if math.isnan(bad) else norm.isinf()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_has_norm_0(backend: str) -> None:
    for tensors in ([], [torch.empty(0)], [torch.empty(0, 3), torch.empty(0, dtype=torch.bfloat16)]):
        norm, factor, found_inf = norm_on(backend, tensors, max_norm=1.0, scale=0.5)
        assert (float(norm), float(factor), float(found_inf)) == (0, 0.5, 0)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "unaligned": lambda x: x.flatten()[1:],
    "transposed": lambda x: x.t(),
    "every other column": lambda x: x[:, ::2],
    "some rows": lambda x: x[3:7],
    "one row": lambda x: x[3],
    "expanded": lambda x: x[:1].expand(5, -1),
    "permuted": lambda x: x.view(2, -1, 3).permute(2, 0, 1),
    "0-d": lambda x: x[0, 0],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    for dtype in DTYPES:
        view = LAYOUTS[layout](some([30 * 33], dtype)[0].view(30, 33))
        assert float(norm_on(backend, [view]).norm) == close_to(exact_norm([view]))


@needs_core
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_bitwise_the_same_for_any_threads_and_places(isa: str) -> None:
    sizes = [40_001, 3, 0, 70_000, 1, 512]
    tensors = some(sizes)
    neighbours = list(torch.cat([torch.zeros(1), *tensors])[1:].split(sizes))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7, 1):
            torch.set_num_threads(threads)
            results += [norm_on(f"cpp-{isa}", given_tensors, max_norm=1.0) for given_tensors in (tensors, neighbours)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("backend", BACKENDS)
def test_squares_of_parts_add_up_to_the_norm_of_all(backend: str) -> None:
    tensors = some([100, 7, 3000])
    with running_on(backend) as device:
        moved = [tensor.to(device) for tensor in tensors]
        total = ops.sum_of_squares(moved[:1]) + ops.sum_of_squares(moved[1:])
        parts, whole = (
            ops.norm_from_squares(total, max_norm=1.0, scale=0.3),
            ops.grad_norm(moved, max_norm=1.0, scale=0.3),
        )
    for a, b in zip(parts, whole):
        torch.testing.assert_close(a, b, rtol=2e-7, atol=0)


@needs_core
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.sampled_from(DTYPES)), max_size=6))
@settings(max_examples=50, deadline=None)
def test_any_sizes_offsets_and_dtypes(parts: list[tuple[int, int, torch.dtype]]) -> None:
    tensors = [some([size + offset], dtype)[0][offset:] for size, offset, dtype in parts]
    assert float(ops.grad_norm(tensors).norm) == close_to(exact_norm(tensors))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_bad_input_is_told(backend: str) -> None:
    with running_on(backend):
        for kind, words, tensors, options in (
            (TypeError, "floating-point", [torch.ones(3, dtype=torch.long)], {}),
            (TypeError, "sparse", [torch.ones(3).to_sparse()], {}),
            (ValueError, "meta", [torch.ones(3), torch.ones(3, device="meta")], {}),
            (ValueError, "max_norm", [torch.ones(3)], {"max_norm": -1.0}),
            (ValueError, "max_norm", [torch.ones(3)], {"max_norm": math.nan}),
            (ValueError, "one element", [torch.ones(3)], {"scale": torch.ones(2)}),
        ):
            with pytest.raises(kind, match=words):
                ops.grad_norm(tensors, **options)  # type: ignore[arg-type]


@needs_core
def test_opcheck() -> None:
    tensors = [torch.randn(5, 3), torch.randn(7).bfloat16()]
    torch.library.opcheck(torch.ops.pyseq.sum_of_squares.default, (tensors,))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_compiles_to_one_graph(backend: str) -> None:
    def clip(tensors: list[Tensor], scale: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.grad_norm(tensors, max_norm=1.0, scale=scale * 2))

    with running_on(backend):
        torch.compiler.reset()
        compiled = torch.compile(clip, fullgraph=True, backend="aot_eager")
        for sizes in ([5, 70], [6, 80], [7, 90]):
            arguments = some(sizes), torch.tensor(0.25)
            assert all(torch.equal(a, b) for a, b in zip(clip(*arguments), compiled(*arguments)))
