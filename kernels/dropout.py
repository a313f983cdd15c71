"""Dropout in Triton. What it computes is said in pyseq/ops/dropout.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pyseq.kernels.random import random_halves
from pyseq.kernels.tables import device_of

TILES = 8  # of 128 elements, a program: 32 bytes of fp32 a thread of 128


@triton.jit
def _dropout_kernel(x, residual, out, seed, count, limit, scale, ADD: tl.constexpr, TILES: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    halves = random_halves(tl.load(seed), program * TILES, TILES)
    offsets = program * (TILES * 128) + tl.arange(0, TILES * 128)
    inside = offsets < count
    result = tl.where(halves > limit, tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) * scale, 0.0)
    if ADD:
        result += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=inside)


def dropout(x: Tensor, residual: Tensor | None, out: Tensor, limit: int, scale: float, seed: Tensor) -> None:
    """Fill ``out`` with dropout of ``x``, plus ``residual`` if there is one. All are contiguous and of one size."""
    count = x.numel()
    if count == 0:
        return
    with device_of(x):
        _dropout_kernel[(triton.cdiv(count, TILES * 128),)](
            x,
            x if residual is None else residual,
            out,
            seed,
            count,
            limit,
            scale,
            ADD=residual is not None,
            TILES=TILES,
            num_warps=4,
        )
