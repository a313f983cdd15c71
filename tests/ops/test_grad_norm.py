"""Every back end of grad_norm against a float64 oracle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pyseq.ops as ops
from support.backends import running_on

BACKENDS = ["torch", "cpp-avx512", "cpp-avx2", "cpp-portable"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def some(sizes: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def oracle(tensors: list[Tensor]) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for tensor in tensors for x in tensor.flatten()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_factor_and_squares(backend: str, dtype: torch.dtype) -> None:
    tensors = some([1, 3, 0, 17, 1025], dtype)
    exact = oracle(tensors)
    with running_on(backend) as device:
        moved = [tensor.to(device) for tensor in tensors]
        norm, factor, found_inf = ops.grad_norm(moved, max_norm=2.0, scale=0.5)
        squares = ops.sum_of_squares(moved)
    assert all(value.shape == () and value.dtype == torch.float32 for value in (norm, factor, found_inf))
    assert squares.shape == () and squares.dtype == torch.float64
    assert float(norm) == pytest.approx(0.5 * exact, rel=1e-7)
    assert float(factor) == pytest.approx(0.5 * 2.0 / (0.5 * exact + 1e-6), rel=1e-7)
    assert float(found_inf) == 0
    assert float(squares) == pytest.approx(exact**2, rel=1e-7)
