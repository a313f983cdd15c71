"""Softmax cross-entropy in Triton. What it computes is said in pyseq/ops/cross_entropy.py.

Forward: one program a row, which reads it block by block and keeps a running maximum and sums relative to it.
Backward: one program a block of a row.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Launch(NamedTuple):
    """Elements of a row that a program holds at a time, and its warps of 32 threads."""

    block: int
    num_warps: int


def launch(cols: int, element_size: int) -> Launch:
    """Launch parameters for rows of ``cols`` elements of ``element_size`` bytes. Nothing is timed.

    A thread holds at most 64 bytes of a row, in loads of 16: enough in flight to hide the latency of memory.
    """
    block = min(triton.next_power_of_2(max(cols, 1)), 32768 // element_size)
    # Blocks are powers of two: smaller ones where more than an eighth of the last one's lanes would idle.
    while block > 1024 and triton.cdiv(cols, block) * block > cols + cols // 8:
        block //= 2
    return Launch(block, num_warps=max(block * element_size // 64 // 32, 1))


@triton.jit
def _forward_kernel(
    logits,
    target,
    loss,
    nll,
    correct,
    stats,
    cols,
    row_stride,
    ignore_index,
    nll_weight,
    smooth_weight,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(target + row)
    if y == ignore_index:
        tl.store(loss + row, 0.0)
        tl.store(nll + row, 0.0)
        tl.store(correct + row, 0)
        tl.store(stats + 2 * row, 0.0)
        tl.store(stats + 2 * row + 1, 1.0)
    else:
        x = logits + row * row_stride
        valid = (y >= 0) & (y < cols)
        x_y = tl.load(x + y, mask=valid, other=float("nan")).to(tl.float32)
        best = tl.full((), float("-inf"), tl.float32)
        exp_sum = tl.full((), 0.0, tl.float64)
        total = tl.full((), 0.0, tl.float64)  # sum of x
        earlier = tl.full((), 0, tl.int32)  # elements before y that equal it
        for begin in range(0, cols, BLOCK):
            offsets = begin + tl.arange(0, BLOCK)
            inside = offsets < cols
            values = tl.load(x + offsets, mask=inside, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(best, tl.max(values))
            shift = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be nan where exp is 0
            exp_sum = exp_sum * tl.exp(best - shift).to(tl.float64) + tl.sum(tl.exp(values - shift)).to(tl.float64)
            shifted = tl.sum(tl.where(inside, values - shift, 0.0)).to(tl.float64)
            total += shifted + tl.minimum(cols - begin, BLOCK).to(tl.float64) * shift.to(tl.float64)
            earlier += tl.sum(((offsets < y) & (values == x_y)).to(tl.int32))
            best = higher
        log_sum = tl.log(exp_sum)
        row_nll = log_sum - (x_y.to(tl.float64) - best.to(tl.float64))
        row_loss = nll_weight * row_nll
        if smooth_weight != 0.0:
            row_loss += smooth_weight * (cols * (log_sum + best.to(tl.float64)) - total)
        is_first = (x_y == best) & (earlier == 0)
        if exp_sum != exp_sum:
            is_first = _is_first_nan(x, x_y, y, cols, is_first, BLOCK)
        tl.store(loss + row, row_loss.to(tl.float32))
        tl.store(nll + row, row_nll.to(tl.float32))
        tl.store(correct + row, (is_first & valid).to(tl.int8))
        tl.store(stats + 2 * row, best)
        tl.store(stats + 2 * row + 1, tl.where(valid, exp_sum.to(tl.float32), float("nan")))


@triton.jit
def _is_first_nan(x, x_y, y, cols, otherwise, BLOCK: tl.constexpr):
    """Whether x_y is the first nan of its row: argmax takes nan for the largest number."""
    nans = tl.full((), 0, tl.int32)
    earlier = tl.full((), 0, tl.int32)
    for begin in range(0, cols, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        values = tl.load(x + offsets, mask=offsets < cols, other=0.0).to(tl.float32)
        is_nan = values != values
        nans += tl.sum(is_nan.to(tl.int32))
        earlier += tl.sum((is_nan & (offsets < y)).to(tl.int32))
    return tl.where(nans > 0, (x_y != x_y) & (earlier == 0), otherwise)


@triton.jit
def _backward_kernel(
    grad_loss,
    logits,
    target,
    stats,
    grad,
    cols,
    row_stride,
    ignore_index,
    nll_weight,
    smooth_weight,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < cols
    y = tl.load(target + row)
    out = grad + row * cols + offsets
    if y == ignore_index:
        tl.store(out, tl.zeros((BLOCK,), tl.float32).to(grad.dtype.element_ty), mask=inside)
    else:
        g = tl.load(grad_loss + row)
        best = tl.load(stats + 2 * row)
        exp_sum = tl.load(stats + 2 * row + 1)
        values = tl.load(logits + row * row_stride + offsets, mask=inside, other=float("-inf")).to(tl.float32)
        result = tl.exp(values - best) * (g / exp_sum) - g * smooth_weight
        begin = tl.program_id(1) * BLOCK
        if (y >= begin) & (y < begin + BLOCK) & (y < cols):
            # In double: for a confident row p_y - 1 is a small difference of large numbers.
            x_y = tl.load(logits + row * row_stride + y).to(tl.float64)
            probability = tl.exp(x_y - best.to(tl.float64)) / exp_sum.to(tl.float64)
            result = tl.where(offsets == y, (g * (probability - smooth_weight - nll_weight)).to(tl.float32), result)
        tl.store(out, result.to(grad.dtype.element_ty), mask=inside)


def forward(
    logits: Tensor,
    target: Tensor,
    weights: tuple[float, float],
    ignore_index: int,
    loss: Tensor,
    nll: Tensor,
    correct: Tensor,
    stats: Tensor,
) -> None:
    """Fill loss, nll, correct [N] and stats [N, 2] for logits [N, V], target [N]. A target out of range gives nan."""
    rows, cols = logits.shape
    if rows == 0:
        return
    block, num_warps = launch(cols, logits.element_size())
    with _device_of(logits):
        _forward_kernel[(rows,)](
            logits,
            target,
            loss,
            nll,
            correct.view(torch.int8),
            stats,
            cols,
            logits.stride(0),
            ignore_index,
            *weights,
            BLOCK=block,
            num_warps=num_warps,
        )


def backward(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    stats: Tensor,
    weights: tuple[float, float],
    ignore_index: int,
    grad: Tensor,
) -> None:
    """Fill grad [N, V], which is contiguous."""
    rows, cols = logits.shape
    if rows == 0 or cols == 0:
        return
    block, num_warps = launch(cols, logits.element_size())
    with _device_of(logits):
        _backward_kernel[(rows, triton.cdiv(cols, block))](
            grad_loss,
            logits,
            target,
            stats,
            grad,
            cols,
            logits.stride(0),
            ignore_index,
            *weights,
            BLOCK=block,
            num_warps=num_warps,
        )


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels are launched on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
