"""Linear layers by our own product: values and gradients against float64, edges of tiles, strides, threads, errors.

Sizes lie around the edges of register tiles (6 and 12 rows, 8, 16 and 32 columns) and of the blocks of depth (256).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyseq import ops
from pyseq.ops import dispatch
from pyseq.ops.linear import gemm_, linear, multiplies, reference

pytestmark = pytest.mark.skipif(dispatch.core() is None, reason="pyseq._core is not built")

SIZES = [(1, 1, 1), (5, 3, 7), (6, 16, 16), (7, 17, 33), (13, 255, 15), (121, 257, 31), (40, 600, 129), (300, 64, 2100)]


@pytest.fixture(autouse=True)
def ours() -> Any:
    with ops.backend("cpp"):
        yield


def errors(found: Tensor, torchs: Tensor, exact: Tensor) -> tuple[float, float]:
    return tuple(float((t.double() - exact).abs().max()) if t.numel() else 0.0 for t in (found, torchs))  # type: ignore[return-value]


def assert_as_exact(found: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """At most 1.5 times torch's error, or two roundings of the largest value where torch has next to none."""
    ours_, theirs = errors(found, torchs, exact)
    floor = 2 * torch.finfo(torch.float32).eps * float(exact.abs().max()) if exact.numel() else 0.0
    assert ours_ <= max(1.5 * theirs, floor)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows, depth, cols", SIZES)
def test_values_and_gradients(rows: int, depth: int, cols: int, bias: bool, activation: Any) -> None:
    torch.manual_seed(rows + depth)
    x, w = torch.randn(rows, depth), torch.randn(cols, depth)
    b = torch.randn(cols) if bias else None
    grad = torch.randn(rows, cols)

    def run(fn: Any, dtype: torch.dtype, grad: Tensor) -> list[Tensor]:
        inputs = [t.detach().clone().to(dtype).requires_grad_() for t in (x, w, b) if t is not None]
        y = fn(*inputs)
        y.backward(grad.to(dtype))
        return [y.detach(), *(t.grad for t in inputs)]

    found = run(lambda *inputs: linear(*inputs, activation=activation), torch.float32, grad)
    # What passes the rectifier is what is positive in our own rounding.
    passed = grad if activation == "none" else grad * (found[0] > 0)
    torchs, exact = (run(F.linear, dtype, passed) for dtype in (torch.float32, torch.float64))
    if activation == "relu":
        torchs[0], exact[0] = torchs[0].relu(), exact[0].relu()
    for mine, theirs, oracle in zip(found, torchs, exact):
        assert_as_exact(mine, theirs, oracle)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_matrices_of_any_strides(data: st.DataObject) -> None:
    """Transposed, sliced, with gaps, off 16-byte boundaries; added to what is there or not."""
    size = st.integers(0, 40)
    m, k, n = (data.draw(size) for _ in range(3))
    torch.manual_seed(m * 1681 + k * 41 + n)

    def matrix(rows: int, cols: int) -> Tensor:
        gap, offset, transposed = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 3)), data.draw(st.booleans())
        wide = torch.randn(max(rows, cols) + offset, gap * max(rows, cols) + offset + 1)
        found = wide[offset:, offset::gap]
        return found[:cols, :rows].t() if transposed else found[:rows, :cols]

    a, b = matrix(m, k), matrix(k, n)
    out = torch.randn(m, n + 3)[:, 1 : n + 1]
    bias = torch.randn(n) if data.draw(st.booleans()) else None
    accumulate, relu = data.draw(st.booleans()), data.draw(st.booleans())
    exact = a.double() @ b.double() + (out.double() if accumulate else 0.0) + (0.0 if bias is None else bias.double())
    gemm_(out, a, b, accumulate=accumulate, bias=bias, relu=relu)
    torch.testing.assert_close(out.double(), exact.relu() if relu else exact, rtol=1e-5, atol=1e-5 * (k + 1))


def test_nothing_beside_the_result_is_written() -> None:
    memory = torch.full((9, 40), 7.0)
    gemm_(memory[1:8, 3:36], torch.randn(7, 5), torch.randn(5, 33))
    memory[1:8, 3:36] = 7.0
    assert (memory == 7.0).all()


def test_inf_and_nan_are_those_of_torch() -> None:
    x, w = torch.randn(9, 20), torch.randn(18, 20)
    x[2, 3], x[4, 0], w[5, 7] = torch.inf, torch.nan, -torch.inf
    x[6, 7] = 0.0  # times -inf
    for activation in ("none", "relu"):
        torch.testing.assert_close(
            linear(x, w, activation=activation),
            reference(x, w, None, activation),
            equal_nan=True,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("rows, depth, cols", [(3000, 128, 128), (130, 700, 300), (128, 3000, 96)])
def test_no_bit_depends_on_threads_or_on_the_run(rows: int, depth: int, cols: int) -> None:
    a, b = torch.randn(rows, depth), torch.randn(cols, depth)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(linear(a, b))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


def test_more_dimensions_and_none() -> None:
    x, w, b = torch.randn(3, 4, 5), torch.randn(6, 5), torch.randn(6)
    torch.testing.assert_close(linear(x, w, b), F.linear(x, w, b))
    torch.testing.assert_close(linear(x[0, 0], w, b), F.linear(x[0, 0], w, b))
    assert linear(torch.empty(0, 5), w).shape == (0, 6)


def test_gradients_that_are_not_asked_for_are_not_made() -> None:
    x, w = torch.randn(4, 5), torch.randn(6, 5, requires_grad=True)
    linear(x, w).sum().backward()  # an expanded gradient, too
    torch.testing.assert_close(w.grad, x.sum(0).expand(6, 5))
    assert x.grad is None


def test_what_the_kernel_does_not_take_is_torchs() -> None:
    x, w = torch.randn(4, 5), torch.randn(6, 5)
    assert multiplies(x, w) and not multiplies(x.double(), w.double()) and not multiplies(x.bfloat16(), w.bfloat16())
    assert linear(x.double(), w.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w).dtype == torch.bfloat16
    with ops.backend("torch"):
        assert not multiplies(x, w) and torch.equal(linear(x, w), F.linear(x, w))


def test_torch_compile_sees_one_graph() -> None:
    compiled = torch.compile(lambda x, w: linear(x, w, activation="relu"), backend="eager", fullgraph=True)
    x, w = torch.randn(4, 5), torch.randn(6, 5)
    torch.testing.assert_close(compiled(x, w), F.relu(x @ w.t()))


def test_chosen_unasked_only_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_forced", None)
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    x = torch.randn(2, 2)
    for isa, expected in (("avx2", True), ("avx512", False), ("portable", False)):
        dispatch._decide.cache_clear()
        monkeypatch.setattr(dispatch, "core", lambda isa=isa: type("Core", (), {"isa": staticmethod(lambda: isa)}))
        assert multiplies(x) is expected
    dispatch._decide.cache_clear()


def test_errors_say_what_is_wrong() -> None:
    x, w = torch.randn(4, 5), torch.randn(6, 5)
    with pytest.raises(ValueError, match="activation must be 'none' or 'relu', not 'gelu'"):
        linear(x, w, activation="gelu")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        linear(x, torch.randn(6, 4))
    with pytest.raises(RuntimeError):
        linear(x, w, torch.randn(5))
