"""Layer normalisation with dropout and a residual before it, in Triton. See pyseq/ops/layer_norm/.

Forward: one program a row, which it holds. Backward: one program a chunk of rows, with sums of its own for the
gradients of weight and bias, which are added up in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyseq.kernels.random import Draws, random_halves, random_halves_at
from pyseq.kernels.tables import device_of

_CHUNKS = 512  # at most: two or more for each multiprocessor of a large GPU


class Launch(NamedTuple):
    """Lanes of a row (a power of two), warps of 32 threads, and whether each row begins at a tile of random numbers."""

    block: int
    num_warps: int
    tiled: bool


def launch(cols: int) -> Launch:
    """Launch parameters for rows of ``cols`` elements: 8 lanes a thread, up to 16 warps. Nothing is timed."""
    block = triton.next_power_of_2(max(cols, 1))
    return Launch(block, num_warps=min(max(block // 256, 1), 16), tiled=cols % 128 == 0)


def chunk_size(rows: int) -> int:
    """Rows of a program of the backward pass."""
    return triton.cdiv(rows, min(rows, _CHUNKS))


@triton.jit
def _drop(values, seed, limit, scale, start, BLOCK: tl.constexpr, TILED: tl.constexpr):
    if TILED:
        halves = random_halves(tl.load(seed), start // 128, BLOCK // 128)
    else:
        halves = random_halves_at(tl.load(seed), start + tl.arange(0, BLOCK))
    return tl.where(halves > limit, values * scale, 0.0)


@triton.jit
def _forward_kernel(
    x,
    residual,
    weight,
    bias,
    y,
    z,
    mean,
    rstd,
    seed,
    limit,
    scale,
    cols,
    eps,
    DROP: tl.constexpr,
    ADD: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = row * cols
    column = tl.arange(0, BLOCK)
    inside = column < cols
    values = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        values = tl.where(inside, _drop(values, seed, limit, scale, start, BLOCK, TILED), 0.0)
    if ADD:
        values += tl.load(residual + start + column, mask=inside, other=0.0).to(tl.float32)
    if DROP or ADD:
        rounded = values.to(z.dtype.element_ty)
        tl.store(z + start + column, rounded, mask=inside)
        values = rounded.to(tl.float32)
    center = tl.sum(values) / cols
    distance = tl.where(inside, values - center, 0.0)
    rest = tl.sum(distance) / cols  # not 0: center is rounded
    distance = tl.where(inside, distance - rest, 0.0)
    factor = (1.0 / tl.sqrt((tl.sum(distance * distance) / cols).to(tl.float64) + eps)).to(tl.float32)
    result = distance * factor
    if WEIGHT:
        result *= tl.load(weight + column, mask=inside, other=0.0)
    if BIAS:
        result += tl.load(bias + column, mask=inside, other=0.0)
    tl.store(y + start + column, result.to(y.dtype.element_ty), mask=inside)
    tl.store(mean + row, center + rest)
    tl.store(rstd + row, factor)


@triton.jit
def _backward_kernel(
    grad_y,
    grad_z,
    z,
    mean,
    rstd,
    weight,
    grad_residual,
    grad_x,
    partial,
    seed,
    limit,
    scale,
    rows,
    cols,
    chunk,
    DROP: tl.constexpr,
    ADD: tl.constexpr,
    WEIGHT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    TILED: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < cols
    grad_weight = tl.zeros((BLOCK,), tl.float32)
    grad_bias = tl.zeros((BLOCK,), tl.float32)
    factors = tl.zeros((BLOCK,), tl.float32) + 1.0
    if WEIGHT:
        factors = tl.load(weight + column, mask=inside, other=0.0)
    first = program * chunk
    for index in range(0, tl.minimum(chunk, rows - first)):
        row = first + index
        start = row * cols
        factor = tl.load(rstd + row)
        values = tl.load(z + start + column, mask=inside, other=0.0).to(tl.float32)
        normal = tl.where(inside, (values - tl.load(mean + row)) * factor, 0.0)
        g = tl.load(grad_y + start + column, mask=inside, other=0.0).to(tl.float32)
        grad_weight += g * normal
        grad_bias += g
        g *= factors
        result = (g - tl.sum(g) / cols - normal * (tl.sum(g * normal) / cols)) * factor
        if ADD:
            result += tl.load(grad_z + start + column, mask=inside, other=0.0).to(tl.float32)
        if RESIDUAL:
            tl.store(grad_residual + start + column, result.to(grad_residual.dtype.element_ty), mask=inside)
        if DROP:
            result = _drop(result, seed, limit, scale, start, BLOCK, TILED)
            tl.store(grad_x + start + column, result.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(partial + program * 2 * cols + column, grad_weight, mask=inside)
    tl.store(partial + (program * 2 + 1) * cols + column, grad_bias, mask=inside)


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    draws: Draws,
    y: Tensor,
    z: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """Fill y and z [..., C] and mean and rstd [rows]. Everything is contiguous; weight and bias are fp32."""
    if x.numel() == 0:
        return
    block, num_warps, tiled = launch(x.size(-1))
    with device_of(x):
        _forward_kernel[(mean.numel(),)](
            x,
            *(x if t is None else t for t in (residual, weight, bias)),
            y,
            x if z is None else z,
            mean,
            rstd,
            x if draws.seed is None else draws.seed,
            draws.limit,
            draws.scale,
            x.size(-1),
            eps,
            DROP=draws.seed is not None,
            ADD=residual is not None,
            WEIGHT=weight is not None,
            BIAS=bias is not None,
            BLOCK=block,
            TILED=tiled,
            num_warps=num_warps,
        )


def backward(
    grad_y: Tensor,
    grad_z: Tensor | None,
    z: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    draws: Draws,
    grad_residual: Tensor | None,
    grad_x: Tensor | None,
    grad_weight: Tensor,
    grad_bias: Tensor,
) -> None:
    """Fill the gradients: [..., C] and, fp32, [C]. Everything is contiguous."""
    rows, cols = mean.numel(), z.size(-1)
    if z.numel() == 0:
        grad_weight.zero_()
        grad_bias.zero_()
        return
    block, num_warps, tiled = launch(cols)
    chunk = chunk_size(rows)
    chunks = triton.cdiv(rows, chunk)
    partial = torch.empty(chunks, 2, cols, dtype=torch.float32, device=z.device)
    with device_of(z):
        _backward_kernel[(chunks,)](
            grad_y,
            z if grad_z is None else grad_z,
            z,
            mean,
            rstd,
            z if weight is None else weight,
            z if grad_residual is None else grad_residual,
            z if grad_x is None else grad_x,
            partial,
            z if draws.seed is None else draws.seed,
            draws.limit,
            draws.scale,
            rows,
            cols,
            chunk,
            DROP=draws.seed is not None,
            ADD=grad_z is not None,
            WEIGHT=weight is not None,
            RESIDUAL=grad_residual is not None,
            BLOCK=block,
            TILED=tiled,
            num_warps=num_warps,
        )
    torch.sum(partial[:, 0], dim=0, out=grad_weight)
    torch.sum(partial[:, 1], dim=0, out=grad_bias)
