"""The best logits of rows and their log-sum-exp, against a float64 oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.linear_top_candidates import TopCandidates, linear_top_candidates
from pyseq.ops.packed_linear import PackedLinear
from support.backends import running_on

BACKENDS = ["torch", "cpp-avx512", "cpp-avx2", "cpp-portable"]
backends = pytest.mark.parametrize("backend", BACKENDS)


def some(rows: int, depth: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + 100 * depth + 10_000 * columns)
    return (
        torch.randn(rows, depth, generator=generator),
        torch.randn(columns, depth, generator=generator),
        torch.randn(columns, generator=generator),
    )


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = x.double() @ weight.double().t()
    return logits if bias is None else logits + bias.double()


def assert_best(found: TopCandidates, compared: Tensor, log_sum_exp: Tensor) -> None:
    """``found`` is what is largest in ``compared`` [R x V], to the rounding of a product in fp32."""
    k = found.values.size(1)
    tolerance = 1e-6 * max(1.0, float(compared[compared.isfinite()].abs().max()))
    torch.testing.assert_close(found.values.double(), compared.topk(k).values, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.values.double(), compared.gather(1, found.tokens), rtol=0, atol=tolerance)
    torch.testing.assert_close(found.log_sum_exp.double(), log_sum_exp, rtol=1e-6, atol=tolerance)
    assert all(len(set(row)) == k for row in found.tokens.tolist())


@backends
@pytest.mark.parametrize(
    "rows, depth, columns, k",
    [
        (1, 1, 1, 1),
        (5, 3, 17, 17),
        (7, 8, 16, 3),
        (12, 64, 384, 10),  # one block of columns exactly
        (13, 64, 385, 10),  # and one column more
        (61, 20, 1000, 4),  # a block of rows and one row more
        (130, 32, 3000, 10),
    ],
)
@pytest.mark.parametrize("biased", [True, False])
def test_the_best_are_the_best(backend, rows, depth, columns, k, biased):
    x, weight, bias = some(rows, depth, columns)
    kept = bias if biased else None
    with running_on(backend):
        found = linear_top_candidates(x, PackedLinear.pack(weight, kept), k)
    logits = exact(x, weight, kept)
    assert_best(found, logits, logits.logsumexp(1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows, depth, columns", [(1, 1, 16), (15, 33, 400), (130, 600, 1000)])
def test_weights_in_bf16(backend, rows, depth, columns):
    """Rows are rounded to bf16 for the product, if the core multiplies that; sums are fp32 in any case."""
    x, weight, bias = some(rows, depth, columns)
    weight = weight.bfloat16()
    with running_on(backend):
        packed = PackedLinear.pack(weight, bias)
        assert packed.bf16 is dispatch.multiplies_bf16() and packed.depth == depth
        found = linear_top_candidates(x, packed, 5)
    logits = exact(x.bfloat16() if packed.bf16 else x, weight, bias)
    assert_best(found, logits, logits.logsumexp(1))


def test_weights_in_bf16_are_refused_where_they_cannot_be_multiplied():
    if not dispatch.multiplies_bf16():
        pytest.skip("the core has no products of bf16 numbers here")
    packed = PackedLinear.pack(torch.zeros(16, 4).bfloat16())
    with running_on("cpp-avx2"), pytest.raises(ValueError, match="does not multiply them"):
        linear_top_candidates(torch.zeros(2, 4), packed, 3)


@backends
def test_adjustments_count_for_the_order_alone(backend):
    x, weight, bias = some(9, 16, 800)
    adjustments = {799: 100.0, 3: -math.inf, 400: -1.5, 401: 50.0}
    compared = exact(x, weight, bias)
    log_sum_exp = compared.logsumexp(1)
    for token, value in adjustments.items():
        compared[:, token] += value
    with running_on(backend):
        found = linear_top_candidates(x, PackedLinear.pack(weight, bias), 6, adjustments)
    assert_best(found, compared, log_sum_exp)
    assert found.tokens[:, :2].tolist() == [[799, 401]] * 9


@backends
def test_equal_logits_come_in_the_order_of_tokens(backend):
    weight = torch.zeros(900, 4)
    weight[700:] = 1.0
    with running_on(backend):
        found = linear_top_candidates(torch.ones(2, 4), PackedLinear.pack(weight), 5)
    assert found.tokens.tolist() == [[700, 701, 702, 703, 704]] * 2


@backends
def test_logits_that_are_not_finite(backend):
    """What is left out becomes the filler; infinite and undefined sums are what logsumexp says."""
    weight = torch.zeros(40, 4)
    bias = torch.full((40,), -math.inf)
    bias[7], bias[30] = 1.0, 2.0
    x = torch.zeros(4, 4)
    x[1, 0], weight[:, 0] = math.nan, 1.0
    with running_on(backend):
        found = linear_top_candidates(x, PackedLinear.pack(weight, bias), 4, filler=1)
        bias[20] = math.inf
        infinite = linear_top_candidates(x[:1], PackedLinear.pack(weight, bias), 2)
        nothing = linear_top_candidates(x[:1], PackedLinear.pack(weight, torch.full((40,), -math.inf)), 2, filler=3)
    assert found.tokens[0].tolist() == [30, 7, 1, 1]
    assert found.values[0].tolist() == [2.0, 1.0, -math.inf, -math.inf]
    assert float(found.log_sum_exp[0]) == pytest.approx(math.log(math.exp(1) + math.exp(2)))
    assert found.tokens[1].tolist() == [1] * 4
    assert bool(found.log_sum_exp[1].isnan())
    assert (infinite.tokens[0].tolist(), float(infinite.log_sum_exp)) == ([20, 30], math.inf)
    assert (nothing.tokens[0].tolist(), float(nothing.log_sum_exp)) == ([3, 3], -math.inf)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads):
    x, weight, bias = some(70, 24, 2000)
    packed = PackedLinear.pack(weight, bias)
    before = torch.get_num_threads()
    with running_on("cpp"):
        expected = linear_top_candidates(x[33:35], packed, 7)
        torch.set_num_threads(threads)
        try:
            found = linear_top_candidates(x, packed, 7)
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(one[33:35], other) for one, other in zip(found, expected))


def test_what_does_not_fit_is_refused():
    packed = PackedLinear.pack(torch.zeros(10, 4))
    with pytest.raises(TypeError, match="fit"):
        linear_top_candidates(torch.zeros(2, 5), packed, 3)
    with pytest.raises(TypeError, match="float64"):
        linear_top_candidates(torch.zeros(2, 4, dtype=torch.float64), packed, 3)
    with pytest.raises(ValueError, match="k is 11"):
        linear_top_candidates(torch.zeros(2, 4), packed, 11)
    with pytest.raises(ValueError, match="adjust"):
        linear_top_candidates(torch.zeros(2, 4), packed, 3, {10: 1.0})
