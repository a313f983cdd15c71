"""The matrix product of the core: exact where sums are, and elsewhere as near to float64 as torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops import dispatch
from support.accuracy import assert_near
from support.backends import using_isa

pytestmark = pytest.mark.skipif(not dispatch.status("cpp").available, reason=dispatch.status("cpp").detail)
ISAS = ["avx512", "avx2", "portable"]


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def whole(*shape: int) -> Tensor:
    """Small whole numbers: sums of their products are exact in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x,
    "columns": lambda x: x.t().contiguous().t(),
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "slice": lambda x: torch.cat([x, x], dim=1)[:, : x.size(1)],
    "every other": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
}

# One less than, equal to and one more than tiles (6 and 12 rows; 8, 16 and 32 columns), and nothing.
SIZES = [0, 1, 5, 6, 7, 12, 13, 15, 16, 17, 33, 100]


@pytest.mark.parametrize("isa", ISAS)
def test_every_edge(isa: str) -> None:
    with using_isa(isa):
        for rows in SIZES:
            for cols in SIZES:
                for depth in (0, 1, 9):
                    a, b = whole(rows, depth), whole(depth, cols)
                    out = torch.full((rows + 1, cols + 1), 0.5)
                    ops.gemm_(out[:rows, :cols], a, b)
                    assert torch.equal(out[:rows, :cols], a @ b), (rows, cols, depth)
                    assert bool((out[rows] == 0.5).all() and (out[:, cols] == 0.5).all())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize("of_b", LAYOUTS)
def test_layouts_of_many_blocks(isa: str, of_a: str, of_b: str) -> None:
    bias = whole(301)
    with using_isa(isa):
        for rows, depth, cols in ((140, 600, 301), (1200, 9, 301), (7, 2048, 301)):
            a, b = LAYOUTS[of_a](whole(rows, depth)), LAYOUTS[of_b](whole(depth, cols))
            out, sums = torch.ones(rows, cols), torch.ones(rows)
            ops.gemm_(out, a, b, accumulate=True, bias=bias, relu=True, row_sums=sums)
            assert torch.equal(out, (a @ b + bias + 1).relu()) and torch.equal(sums, a.sum(1) + 1)


# Products like those of a small model, and depths on both sides of chains (192) and blocks (576).
PRODUCTS = [(300, 128, 384), (300, 192, 64), (300, 193, 64), (300, 576, 128), (90, 577, 65), (128, 3000, 128)]
PRODUCTS += [(33, 9736, 40)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows, depth, cols", PRODUCTS)
def test_error_is_near_that_of_torch(isa: str, rows: int, depth: int, cols: int) -> None:
    a, b, bias = some(rows, depth), some(depth, cols), some(cols)
    out, sums = torch.empty(rows, cols), torch.empty(rows)
    with using_isa(isa):
        ops.gemm_(out, a, b, bias=bias, row_sums=sums)
    assert_near(out, torch.addmm(bias, a, b), torch.addmm(bias.double(), a.double(), b.double()))
    assert_near(sums, a.sum(1), a.double().sum(1), factor=3.0)  # torch sums in more, shorter chains


@pytest.mark.parametrize("isa", ISAS)
def test_inf_and_nan_go_where_torchs_go(isa: str) -> None:
    a, b = whole(20, 30), whole(30, 40)
    a[3, 4], a[5, 6], a[7, 8] = float("inf"), float("nan"), float("-inf")
    b[4, :7], b[8, 20:] = 0.0, 0.0  # 0 times inf is nan
    b[9, 33] = float("nan")
    out, relu = torch.empty(20, 40), torch.empty(20, 40)
    with using_isa(isa):
        ops.gemm_(out, a, b)
        ops.gemm_(relu, a, b, relu=True)
    want = a @ b
    assert want.isnan().any() and want.isinf().any()
    assert torch.equal(out.nan_to_num(7.5, 8.5, 9.5), want.nan_to_num(7.5, 8.5, 9.5))
    assert torch.equal(relu.nan_to_num(7.5, 8.5, 9.5), want.relu().nan_to_num(7.5, 8.5, 9.5))


@pytest.mark.parametrize("isa", ISAS)
def test_repeatable_and_independent_of_threads(isa: str) -> None:
    before = torch.get_num_threads()
    for rows, depth, cols in ((500, 300, 130), (20, 700, 900), (64, 4000, 64), (90, 2000, 512), (180, 1000, 70)):
        a, b, results = some(depth, rows).t(), some(depth, cols), []
        with using_isa(isa):
            for threads in (1, 2, 3, 7, 2):
                torch.set_num_threads(threads)
                out, sums = torch.empty(rows, cols), torch.empty(rows)
                try:
                    ops.gemm_(out, a, b, row_sums=sums)
                finally:
                    torch.set_num_threads(before)
                results.append((out, sums))
        assert all(torch.equal(x, y) for result in results[1:] for x, y in zip(results[0], result))


def test_bad_arguments_are_told() -> None:
    out, a, b = torch.empty(2, 3), torch.ones(2, 4), torch.ones(4, 3)
    for shapes in ((a, torch.ones(3, 3)), (torch.ones(4), b), (torch.ones(3, 4), b)):
        with pytest.raises(ValueError, match="are not the shapes of"):
            ops.gemm_(out, *shapes)
    with pytest.raises(TypeError, match="fp32 tensors on the CPU, not torch.float64"):
        ops.gemm_(out, a.double(), b)
    for gaps in (torch.empty(3, 2).t(), torch.empty(1, 3).expand(2, 3)):
        with pytest.raises(ValueError, match="gaps or overlap"):
            ops.gemm_(gaps, a, b)
    with pytest.raises(ValueError, match="bias .4,. does not fit"):
        ops.gemm_(out, a, b, bias=torch.ones(4))
    with pytest.raises(ValueError, match="row_sums"):
        ops.gemm_(out, a, b, row_sums=torch.ones(3))
