"""The sum of squares of many tensors and the norm that follows, in Triton. What it computes is said in
pyseq/ops/grad_norm.py and csrc/math/grad_norm.h.

A program adds up a chunk of one tensor in fp64; a second launch adds up the chunks in order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyseq.kernels.tables import (
    DeviceTable,
    as_float32,
    bits_of,
    column,
    device_of,
    double_of,
    elements,
    is_aligned,
    row_of_chunk,
    search_steps,
    with_chunks,
)

TABLE_WIDTH = tl.constexpr(4)  # address, elements, dtype, first chunk
FINAL_BLOCK = 1024


class Launch(NamedTuple):
    """Elements of a chunk, of them a program adds ``block`` at a time, and its warps of 32 threads."""

    chunk: int
    block: int
    num_warps: int


def launch(elements: int) -> Launch:
    """Launch parameters for tensors of so many elements in all. Nothing is timed.

    Small chunks for few elements, so that all of a GPU works; large ones for many, so that there are few sums.
    """
    chunk = 2048
    while chunk < 65536 and elements // chunk > 4096:
        chunk *= 2
    return Launch(chunk, 2048, 8)


@triton.jit
def _squares(row, first, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    x = column(row, 0, DTYPE, ALIGNED)
    numel = elements(row, 1, ALIGNED)
    total = tl.full((), 0.0, tl.float64)
    for begin in range(0, CHUNK, BLOCK):
        offsets = first + begin + tl.arange(0, BLOCK)
        values = tl.load(x + offsets, mask=offsets < numel, other=0.0)
        if values.dtype == tl.bfloat16:
            values = as_float32(values)
        values = values.to(tl.float64)
        total += tl.sum(values * values)
    return total


@triton.jit(do_not_specialize=["rows", "steps"])
def _chunk_kernel(table, partial, rows, steps, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    chunk = tl.program_id(0).to(tl.int64)
    row = row_of_chunk(table, rows, steps, chunk, TABLE_WIDTH)
    dtype = tl.load(row + 2)
    first = (chunk - tl.load(row + 3)) * CHUNK
    if dtype == 0:
        total = _squares(row, first, tl.float32, ALIGNED, CHUNK, BLOCK)
    elif dtype == 1:
        total = _squares(row, first, tl.bfloat16, ALIGNED, CHUNK, BLOCK)
    elif dtype == 2:
        total = _squares(row, first, tl.float16, ALIGNED, CHUNK, BLOCK)
    else:
        total = _squares(row, first, tl.float64, ALIGNED, CHUNK, BLOCK)
    tl.store(partial + chunk, total)


@triton.jit(do_not_specialize=["chunks", "scale_bits", "max_norm_bits"])
def _finish_kernel(partial, chunks, scale, scale_bits, max_norm_bits, squares, out, BLOCK: tl.constexpr):
    sums = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, chunks, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        sums += tl.load(partial + offsets, mask=offsets < chunks, other=0.0)
    total = tl.sum(sums)
    if squares is not None:
        tl.store(squares, total)
    if out is not None:
        factor = double_of(scale_bits)
        if scale is not None:
            factor = tl.load(scale).to(tl.float64)
        norm = (tl.sqrt(total) * tl.abs(factor)).to(tl.float32)
        max_norm = double_of(max_norm_bits)
        if max_norm >= 0.0:
            eps = (tl.full((), 1, tl.float64)) / 1000000
            ratio = max_norm / (norm.to(tl.float64) + eps)
            factor = tl.where(ratio >= 1.0, factor, factor * ratio)  # a nan ratio makes the factor nan
        tl.store(out, norm)
        tl.store(out + 1, factor.to(tl.float32))
        tl.store(out + 2, tl.where(norm - norm == 0.0, 0.0, 1.0))  # inf - inf and nan - nan are nan


_table = DeviceTable()


def _prepare(table: Tensor) -> tuple[Tensor, tuple[int, bool, Launch]]:
    launched = launch(int(table[:, 1].sum()))
    rows, chunks = with_chunks(table, 1, launched.chunk)
    return rows, (chunks, is_aligned(rows[:, :2]), launched)


def grad_norm(
    table: Tensor, squares: Tensor | None, scale: Tensor | float, max_norm: float | None, out: Tensor | None
) -> None:
    """Fill ``squares`` (fp64, 0-d) and ``out`` (fp32 [3]: norm, factor, found_inf), either of which may be None.

    Args:
        table: int64 [tensors, 3] on the CPU: address, elements, dtype (0 fp32, 1 bf16, 2 fp16, 3 fp64).
        scale: a number, or an fp32 tensor of one element on the device of the results.
        max_norm: None does not clip.
    """
    result = squares if out is None else out
    assert result is not None
    rows, (chunks, aligned, (chunk, block, num_warps)) = _table.get(table, result.device, _prepare)
    partial = torch.empty(chunks, dtype=torch.float64, device=result.device)
    number, tensor = (1.0, scale) if isinstance(scale, Tensor) else (scale, None)
    with device_of(result):
        if chunks:
            _chunk_kernel[(chunks,)](
                rows,
                partial,
                len(rows),
                search_steps(len(rows)),
                ALIGNED=aligned,
                CHUNK=chunk,
                BLOCK=block,
                num_warps=num_warps,
            )
        _finish_kernel[(1,)](
            partial,
            chunks,
            tensor,
            bits_of(number),
            bits_of(-1.0 if max_norm is None else max_norm),
            squares,
            out,
            BLOCK=FINAL_BLOCK,
            num_warps=8,
        )
