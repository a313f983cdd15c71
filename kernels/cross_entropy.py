"""Softmax cross-entropy in Triton. What it computes is said in pyseq/ops/cross_entropy/definition.py.

Losses: one program a row. A row that fits into the registers of a program is read once, and its gradient is written
from there. A longer one is read block by block, with a running maximum and sums relative to it, and a second time for
the gradient; programs are made so large that the rows at work stay in the L2 in between.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyseq.kernels.cross_entropy_parts import (
    add_block,
    capped,
    edges,
    gradient_at,
    is_first_nan,
    load_row,
    row_gradient,
    row_loss,
    store_whole_groups,
    write_edges,
    write_zeros,
)
from pyseq.kernels.tables import device_of

WHOLE_ROW = 8192  # elements: more of them spill from the registers of a program
LARGE_ROW = 96 * 1024  # bytes: three of them on each multiprocessor are what the L2 can hold
PER_THREAD = 16  # elements: two 16-byte loads in flight, or four


class Launch(NamedTuple):
    """Elements of a row that a program holds at a time, its warps of 32 threads, and whether that is all of the row."""

    block: int
    num_warps: int
    whole: bool


def launch(span: int, element_size: int) -> Launch:
    """Launch parameters for rows that touch ``span`` elements of ``element_size`` bytes. Nothing is timed."""
    block = triton.next_power_of_2(max(span, 16))
    if block <= WHOLE_ROW:
        return Launch(block, _warps(block), True)
    if span * element_size <= LARGE_ROW:
        return Launch(4096, _warps(4096), False)
    return Launch(8192, 32, False)  # fills a multiprocessor, so that each has one row at work


def gradient_launch(span: int) -> Launch:
    """Launch parameters of the gradient alone, for which any part of a row will do."""
    block = min(triton.next_power_of_2(max(span, 16)), 4096)
    return Launch(block, _warps(block), span <= block)


def _warps(block: int) -> int:
    return max(block // (PER_THREAD * 32), 1)


def group_of(*matrices: Tensor) -> int:
    """Elements of a 16-byte access if rows of all matrices begin equally far from a multiple of 16 bytes, else 1."""
    size = 16 // matrices[0].element_size()
    aligned = all(matrix.data_ptr() % 16 == 0 for matrix in matrices)
    alike = len({matrix.stride(0) % size for matrix in matrices}) == 1
    return size if aligned and alike else 1


_SCALARS = ["cols", "row_stride", "grad_stride", "grad_loss_stride", "ignore_index"]


@triton.jit(do_not_specialize=[*_SCALARS, "nll_weight", "smooth_weight", "z_loss", "soft_cap", "uniform_grad_loss"])
def _rows_kernel(
    logits,
    target,
    class_weight,
    weight_total,
    grad_loss,
    loss,
    nll,
    correct,
    stats,
    grad,
    cols,
    row_stride,
    grad_stride,
    grad_loss_stride,
    uniform_grad_loss,
    ignore_index,
    nll_weight,
    smooth_weight,
    z_loss,
    soft_cap,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    GROUP: tl.constexpr,
    GRADIENT: tl.constexpr,
    BY_ROW: tl.constexpr,
    SMOOTH: tl.constexpr,
    WEIGHT: tl.constexpr,
    CAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = row * row_stride
    before = (start % GROUP).to(tl.int32)
    end = before + cols
    x = logits + start // GROUP * GROUP
    out = grad + row * grad_stride // GROUP * GROUP
    y = tl.load(target + row)
    if y == ignore_index:
        tl.store(loss + row, 0.0)
        tl.store(nll + row, 0.0)
        tl.store(correct + row, 0)
        tl.store(stats + 2 * row, 0.0)
        tl.store(stats + 2 * row + 1, 1.0)
        if GRADIENT:
            write_zeros(out, before, end, 0, end, BLOCK, GROUP)
    else:
        # The target's logit is read first: the gradient may be written over it.
        valid = (y >= 0) & (y < cols)
        x_y = tl.load(x + before + y, mask=valid, other=float("nan")).to(tl.float32)
        z_y = capped(x_y, valid, soft_cap, CAP)
        z_y = tl.where(valid, z_y, float("nan"))
        best = tl.full((), float("-inf"), tl.float32)
        exp_sum = tl.full((), 0.0, tl.float64)
        total = tl.full((), 0.0, tl.float64)
        earlier = tl.full((), 0, tl.int32)
        if WHOLE:
            positions = tl.arange(0, BLOCK)
            values = load_row(x, positions, before, end, "evict_first", GROUP)
            best, exp_sum, total, earlier = add_block(
                values, positions, before, end, y, z_y, class_weight, soft_cap,
                best, exp_sum, total, earlier, CAP, WEIGHT, SMOOTH,
            )  # fmt: skip
        else:
            for begin in range(0, end, BLOCK):
                positions = begin + tl.arange(0, BLOCK)
                values = load_row(x, positions, before, end, "evict_last", GROUP)
                best, exp_sum, total, earlier = add_block(
                    values, positions, before, end, y, z_y, class_weight, soft_cap,
                    best, exp_sum, total, earlier, CAP, WEIGHT, SMOOTH,
                )  # fmt: skip
        is_first = (z_y == best) & (earlier == 0)
        if exp_sum != exp_sum:
            is_first = is_first_nan(x, before, end, y, z_y, is_first, BLOCK, GROUP)
        if GRADIENT:
            g = uniform_grad_loss
            if BY_ROW:
                g = tl.load(grad_loss + row * grad_loss_stride)
            scale, offset, of_target = row_gradient(
                g, y, z_y, valid, best, exp_sum, class_weight, weight_total,
                nll_weight, smooth_weight, z_loss, soft_cap, cols, CAP, WEIGHT,
            )  # fmt: skip
            tl.debug_barrier()  # every thread has read the target's logit and looked for nan
            if GROUP > 1:
                write_edges(
                    x, out, before, end, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT, GROUP
                )
            if WHOLE:
                positions = tl.arange(0, BLOCK)
                inside = (positions >= before) & (positions < end)
                result = gradient_at(
                    values, inside, positions - before, y, class_weight, soft_cap,
                    best, scale, offset, of_target, CAP, WEIGHT,
                )  # fmt: skip
                store_whole_groups(out, result, positions, before, end, GROUP)
            else:
                for begin in range(0, end, BLOCK):
                    positions = begin + tl.arange(0, BLOCK)
                    inside = (positions >= before) & (positions < end)
                    values = load_row(x, positions, before, end, "evict_first", GROUP)
                    result = gradient_at(
                        values, inside, positions - before, y, class_weight, soft_cap,
                        best, scale, offset, of_target, CAP, WEIGHT,
                    )  # fmt: skip
                    store_whole_groups(out, result, positions, before, end, GROUP)
        its_loss, its_nll = row_loss(
            y, z_y, valid, best, exp_sum, total, class_weight, weight_total,
            nll_weight, smooth_weight, z_loss, cols, WEIGHT, SMOOTH,
        )  # fmt: skip
        tl.store(loss + row, its_loss)
        tl.store(nll + row, its_nll)
        tl.store(correct + row, (is_first & valid).to(tl.int8))
        tl.store(stats + 2 * row, best)
        tl.store(stats + 2 * row + 1, tl.where(valid, exp_sum.to(tl.float32), float("nan")))


@triton.jit(do_not_specialize=[*_SCALARS, "nll_weight", "smooth_weight", "z_loss", "soft_cap"])
def _gradient_kernel(
    logits,
    target,
    class_weight,
    weight_total,
    grad_loss,
    stats,
    grad,
    cols,
    row_stride,
    grad_stride,
    grad_loss_stride,
    ignore_index,
    nll_weight,
    smooth_weight,
    z_loss,
    soft_cap,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    WEIGHT: tl.constexpr,
    CAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * BLOCK
    start = row * row_stride
    before = (start % GROUP).to(tl.int32)
    end = before + cols
    x = logits + start // GROUP * GROUP
    out = grad + row * grad_stride // GROUP * GROUP
    y = tl.load(target + row)
    if y == ignore_index:
        write_zeros(out, before, end, begin, begin + BLOCK, BLOCK, GROUP)
    else:
        best = tl.load(stats + 2 * row)
        exp_sum = tl.load(stats + 2 * row + 1).to(tl.float64)
        # Only the program that writes the target's element may read it: it may be written over the logit.
        valid = (y >= 0) & (y < cols)
        group = (before + y) // GROUP * GROUP
        writer = (before + y) // BLOCK * BLOCK
        if GROUP > 1:
            writer = tl.where((group < before) | (group + GROUP > end), 0, writer)
        mine = (writer == begin) & valid
        x_y = tl.load(x + before + y, mask=mine, other=0.0).to(tl.float32)
        z_y = capped(x_y, valid, soft_cap, CAP)
        g = tl.load(grad_loss + row * grad_loss_stride)
        scale, offset, of_target = row_gradient(
            g, y, z_y, valid, best, exp_sum, class_weight, weight_total,
            nll_weight, smooth_weight, z_loss, soft_cap, cols, CAP, WEIGHT,
        )  # fmt: skip
        positions = begin + tl.arange(0, BLOCK)
        inside = (positions >= before) & (positions < end)
        values = load_row(x, positions, before, end, "evict_first", GROUP)
        result = gradient_at(
            values, inside, positions - before, y, class_weight, soft_cap,
            best, scale, offset, of_target, CAP, WEIGHT,
        )  # fmt: skip
        tl.debug_barrier()  # every thread has read the target's logit
        store_whole_groups(out, result, positions, before, end, GROUP)
        if GROUP > 1:  # noqa: SIM102  (known when it is compiled)
            if begin == 0:
                write_edges(
                    x, out, before, end, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT, GROUP
                )


@triton.jit(do_not_specialize=["cols", "grad_stride", "ignore_index"])
def _scale_kernel(grad, factor, target, cols, grad_stride, ignore_index, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    by = tl.load(factor)
    row = tl.program_id(0).to(tl.int64)
    if by != 1.0:  # noqa: SIM102  (the target is not read if it is 1)
        if tl.load(target + row) != ignore_index:
            start = row * grad_stride
            before = (start % GROUP).to(tl.int32)
            end = before + cols
            out = grad + start // GROUP * GROUP
            begin = tl.program_id(1) * BLOCK
            positions = begin + tl.arange(0, BLOCK)
            store_whole_groups(
                out, load_row(out, positions, before, end, "evict_first", GROUP) * by, positions, before, end, GROUP
            )
            if GROUP > 1:  # noqa: SIM102  (known when it is compiled)
                if begin == 0:
                    ends, inside = edges(before, end, GROUP)
                    values = tl.load(out + ends, mask=inside, other=0.0).to(tl.float32)
                    tl.store(out + ends, (values * by).to(grad.dtype.element_ty), mask=inside)


class Loss(NamedTuple):
    """What all rows of a loss have in common: csrc/math/cross_entropy.h has the formula."""

    nll_weight: float
    smooth_weight: float
    z_loss: float
    soft_cap: float  # 0: none
    class_weight: Tensor | None  # [V] fp32
    ignore_index: int

    def arguments(self) -> dict[str, Any]:
        """The arguments that say this to a kernel."""
        weight = self.class_weight
        return {
            "class_weight": weight,
            "weight_total": None if weight is None else weight.sum(dtype=torch.float64),
            "nll_weight": self.nll_weight,
            "smooth_weight": self.smooth_weight,
            "z_loss": self.z_loss,
            "soft_cap": self.soft_cap,
            "ignore_index": self.ignore_index,
            "WEIGHT": weight is not None,
            "CAP": self.soft_cap != 0.0,
        }


def rows(
    logits: Tensor,
    target: Tensor,
    loss: Loss,
    results: tuple[Tensor, Tensor, Tensor, Tensor],
    grad_loss: Tensor | float = 0.0,
    grad: Tensor | None = None,
) -> None:
    """Fill loss, nll, correct [N] and stats [N, 2] for logits [N, V], target [N]. A target out of range gives nan.

    ``grad`` [N, V], if it is not None, gets the gradient of ``(grad_loss * loss).sum()``; it may be the logits.
    """
    count, cols = logits.shape
    if count == 0:
        return
    group = group_of(logits) if grad is None else group_of(logits, grad)
    block, num_warps, whole = launch(cols + group - 1, logits.element_size())
    losses, nll, correct, stats = results
    by_row = isinstance(grad_loss, Tensor)
    with device_of(logits):
        _rows_kernel[(count,)](
            logits=logits,
            target=target,
            grad_loss=grad_loss if by_row else None,
            loss=losses,
            nll=nll,
            correct=correct.view(torch.int8),
            stats=stats,
            grad=logits if grad is None else grad,
            cols=cols,
            row_stride=logits.stride(0),
            grad_stride=0 if grad is None else grad.stride(0),
            grad_loss_stride=_stride(grad_loss) if isinstance(grad_loss, Tensor) else 0,
            uniform_grad_loss=0.0 if isinstance(grad_loss, Tensor) else float(grad_loss),
            **loss.arguments(),
            BLOCK=block,
            WHOLE=whole,
            GROUP=group,
            GRADIENT=grad is not None,
            BY_ROW=by_row,
            SMOOTH=loss.smooth_weight != 0.0,
            num_warps=num_warps,
        )


def gradient(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    stats: Tensor,
    loss: Loss,
    grad: Tensor,
) -> None:
    """Fill ``grad`` [N, V], which may be the logits, for the stats of :func:`rows`."""
    count, cols = logits.shape
    if count == 0 or cols == 0:
        return
    group = group_of(logits, grad)
    span = cols + group - 1
    block, num_warps, _ = gradient_launch(span)
    with device_of(logits):
        _gradient_kernel[(count, triton.cdiv(span, block))](
            logits=logits,
            target=target,
            grad_loss=grad_loss,
            stats=stats,
            grad=grad,
            cols=cols,
            row_stride=logits.stride(0),
            grad_stride=grad.stride(0),
            grad_loss_stride=_stride(grad_loss),
            **loss.arguments(),
            BLOCK=block,
            GROUP=group,
            num_warps=num_warps,
        )


def scale_(grad: Tensor, factor: Tensor, target: Tensor, ignore_index: int) -> None:
    """Multiply ``grad`` [N, V] by ``factor``, 0-d fp32, unless that is 1. Ignored rows stay as they are."""
    count, cols = grad.shape
    if count == 0 or cols == 0:
        return
    group = group_of(grad)
    span = cols + group - 1
    block, num_warps, _ = gradient_launch(span)
    with device_of(grad):
        _scale_kernel[(count, triton.cdiv(span, block))](
            grad, factor, target, cols, grad.stride(0), ignore_index, BLOCK=block, GROUP=group, num_warps=num_warps
        )


def _stride(grad_loss: Tensor) -> int:
    return grad_loss.stride(0) if grad_loss.dim() else 0
