"""The sum of outer products of bf16 rows, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyseq import ops
from pyseq.ops import dispatch, outer_products
from pyseq.ops.linear_cross_entropy import products

needs_products = pytest.mark.skipif(
    not (dispatch.status("cpp").available and dispatch.required_core().has_bf16_products()),
    reason="the core is not built, or this processor has no AVX512_BF16",
)

# Rows, columns: one of everything; an odd row; a tile (14 x 32) and a column more or less; several blocks of 256 rows.
SIZES = [(1, 1, 1), (2, 14, 32), (3, 15, 33), (5, 13, 31), (256, 28, 64), (257, 31, 70), (600, 300, 130), (40, 5, 200)]


def some(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def assert_right(found: Tensor, a: Tensor, b: Tensor, plus: Tensor | float = 0.0) -> None:
    """Within the bound of Higham (2002), (3.5), for a sum in fp32, in whatever order."""
    a, b = a.double(), b.double()
    sizes = a.t().abs() @ b.abs() + abs(plus)
    assert found.dtype == torch.float32
    assert ((found.double() - (a.t() @ b + plus)).abs() <= (len(a) + 2) * 2.0**-24 * sizes).all()


@needs_products
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums(size: tuple[int, int, int]) -> None:
    rows, m, n = size
    a, b, before = some(rows, m), some(rows, n), torch.randn(m, n)
    assert_right(ops.outer_products_(torch.full((m, n), float("nan")), a, b), a, b)
    assert_right(ops.outer_products_(before.clone(), a, b, accumulate=True), a, b, plus=before.double())


@needs_products
def test_nothing_beside_the_matrices_is_touched_or_read() -> None:
    a, b, out = (torch.full((9, 50), float("nan"), dtype=dtype) for dtype in (*2 * [torch.bfloat16], torch.float32))
    a[:7, 3:20], b[:7, 1:40] = some(7, 17), some(7, 39)
    ops.outer_products_(out[1:9, :39], a[:7, 3:11], b[:7, 1:40])
    assert_right(out[1:9, :39], a[:7, 3:11], b[:7, 1:40])
    assert out[0].isnan().all() and out[:, 39:].isnan().all()


@needs_products
def test_no_rows_are_a_sum_of_nothing() -> None:
    a, b, before = some(0, 20), some(0, 40), torch.randn(20, 40)
    assert torch.equal(ops.outer_products_(before.clone(), a, b, accumulate=True), before)
    assert not ops.outer_products_(before.clone(), a, b).any()
    assert ops.outer_products_(torch.empty(0, 40), some(5, 0), some(5, 40)).shape == (0, 40)


@needs_products
def test_inf_and_nan_stay_in_their_rows_and_columns() -> None:
    a, b = some(33, 20), some(33, 40)
    a[32, 3], b[32, 7] = float("inf"), float("nan")
    found, expected = ops.outer_products_(torch.empty(20, 40), a, b), a.float().t() @ b.float()
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf())


@needs_products
def test_subnormal_numbers_count_as_zero() -> None:
    tiny, large = torch.full((2, 16), 1e-39).bfloat16(), torch.full((2, 16), 1e10).bfloat16()
    assert tiny.any() and not ops.outer_products_(torch.ones(16, 16), tiny, large).any()


@needs_products
def test_repeatable_and_independent_of_threads() -> None:
    a, b, results, before = some(400, 1000), some(400, 100), [], torch.get_num_threads()
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)
        try:
            results.append(ops.outer_products_(torch.empty(1000, 100), a, b))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@needs_products
def test_the_gradient_of_a_weight_is_not_rounded_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small terms after a large one: the large one's rounding to bf16 would lose all that comes after it."""
    monkeypatch.setattr(outer_products, "pays", lambda: True)
    gradient, chunk = torch.full((64, 40), 2.0**-9).bfloat16(), torch.ones(64, 32).bfloat16()
    total = torch.ones(40, 32)
    with ops.backend("cpp"):
        for _ in range(8):
            products.add_weight_gradient(total, gradient, chunk, first=False)
    assert torch.equal(total, torch.full((40, 32), 2.0))


def test_bad_arguments_are_told() -> None:
    out, a, b = torch.empty(3, 4), some(2, 3), some(2, 4)
    for others in ((some(3, 3), b), (a, some(2, 5)), (some(2), b)):
        with pytest.raises(ValueError, match="are not the shapes of"):
            ops.outer_products_(out, *others)
    with pytest.raises(TypeError, match=r"sums bf16 in fp32 on the CPU, not torch.float32"):
        ops.outer_products_(out, a.float(), b)
    with pytest.raises(ValueError, match="gaps or overlap"):
        ops.outer_products_(torch.empty(4, 3).t(), a, b)
    with pytest.raises(ValueError, match="gaps or overlap"):
        ops.outer_products_(out, a[:1].expand(2, 3), b)


def test_it_is_chosen_where_it_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    class Processor:
        def __init__(self, vendor: str) -> None:
            self.vendor = lambda: vendor

    for vendor, there, pays in (("amd", True, True), ("amd", False, False), ("intel", True, False)):
        monkeypatch.setattr(dispatch, "multiplies_bf16", lambda there=there: there)
        monkeypatch.setattr(dispatch, "required_core", lambda vendor=vendor: Processor(vendor))
        assert outer_products.pays() is pays
