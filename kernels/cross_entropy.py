"""Softmax cross-entropy in Triton. What it computes is said in pyseq/ops/cross_entropy/definition.py.

Losses: one program a row. A row that fits into the registers of a program is read once, and its gradient is written from
there. A longer one is read block by block, with a running maximum and sums relative to it, and a second time for the
gradient; programs are made so large that the rows at work stay in the L2 in between.

A row may begin at any element, and the compiler makes 16-byte accesses only where it can prove that they are aligned and
whole. So rows are taken in groups of 16 bytes from the aligned address before their first element: loads take whole groups
and forget what is not of the row, stores write the groups that are all of the row, and the elements at both ends follow.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    """Elements of a 16-byte access, if rows of all matrices begin at the same distance from a multiple of 16; else 1."""
    size = 16 // matrices[0].element_size()
    aligned = all(matrix.data_ptr() % 16 == 0 for matrix in matrices)
    alike = len({matrix.stride(0) % size for matrix in matrices}) == 1
    return size if aligned and alike else 1


@triton.jit
def _tanh(u):
    """Within two units of the last place. Near 0 a polynomial, fitted to (tanh(u) / u - 1) / u^2: 1 - exp(-2u) cancels."""
    s = u * u
    p = ((-0.00627639 * s + 0.02111621) * s - 0.05387514) * s + 0.13332924
    near = u + u * (s * (p * s - 0.3333333))
    e = tl.exp(-2.0 * tl.abs(u))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(u) < 0.6, near, tl.where(u < 0.0, -far, far))


@triton.jit
def _load(x, positions, before, end, POLICY: tl.constexpr, GROUP: tl.constexpr):
    """Elements of a row from the groups that it touches, -inf where they are not of the row."""
    touched = positions // GROUP * GROUP < end
    values = tl.load(x + positions, mask=touched, other=float("-inf"), eviction_policy=POLICY).to(tl.float32)
    return tl.where((positions >= before) & (positions < end), values, float("-inf"))


@triton.jit
def _capped(values, inside, soft_cap, CAP: tl.constexpr):
    if CAP:
        values = tl.where(inside, soft_cap * _tanh(values / soft_cap), float("-inf"))
    return values


@triton.jit
def _gradient_at(values, inside, classes, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT):
    """The gradient at some elements of a row; ``of_target`` is the target's, which is known better."""
    z = _capped(values, inside, soft_cap, CAP)
    result = tl.exp(z - best) * scale
    if WEIGHT:
        result -= offset * tl.load(class_weight + classes, mask=inside, other=0.0)
    else:
        result -= offset
    if CAP:
        t = z / soft_cap
        result *= 1.0 - t * t
    return tl.where(classes == y, of_target, result)


@triton.jit
def _store(out, result, positions, before, end, GROUP: tl.constexpr):
    """Stores the groups that are all of the row."""
    group = positions // GROUP * GROUP
    inner = (group >= before) & (group + GROUP <= end)
    tl.store(out + positions, result.to(out.dtype.element_ty), mask=inner)


@triton.jit
def _edges(before, end, GROUP: tl.constexpr):
    """The positions of the groups at both ends, and which of them are of the row and in no group that is all of it."""
    e = tl.arange(0, 2 * GROUP)
    last = end // GROUP * GROUP
    positions = tl.where(e < GROUP, e, last + e - GROUP)
    inside = (positions >= before) & (positions < end)
    group = positions // GROUP * GROUP
    cut = (group < before) | (group + GROUP > end)
    once = (e < GROUP) | (positions >= GROUP)  # the last group may be the first
    return positions, inside & cut & once


@triton.jit
def _write_edges(
    x, out, before, end, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT, GROUP: tl.constexpr
):
    # Nothing has been written over these logits, if that is where the gradient goes: _store left them out.
    positions, inside = _edges(before, end, GROUP)
    values = tl.load(x + positions, mask=inside, other=float("-inf")).to(tl.float32)
    result = _gradient_at(
        values, inside, positions - before, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT
    )
    tl.store(out + positions, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _write_zeros(out, before, end, begin, stop, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    for at in range(begin, stop, BLOCK):
        _store(out, tl.zeros((BLOCK,), tl.float32), at + tl.arange(0, BLOCK), before, end, GROUP)
    if GROUP > 1:
        if begin == 0:
            positions, inside = _edges(before, end, GROUP)
            zeros = tl.zeros((2 * GROUP,), tl.float32)
            tl.store(out + positions, zeros.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add(
    values, positions, before, end, y, z_y, class_weight, soft_cap, best, exp_sum, total, weights, earlier, CAP, WEIGHT, SMOOTH
):
    """The maximum, the sums of exp(z - best), w z and w, and the elements before the target that equal it, with more."""
    inside = (positions >= before) & (positions < end)
    z = _capped(values, inside, soft_cap, CAP)
    higher = tl.maximum(best, tl.max(z))
    shift = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be nan where exp is 0
    exp_sum = exp_sum * tl.exp(best - shift).to(tl.float64) + tl.sum(tl.exp(z - shift)).to(tl.float64)
    if SMOOTH:
        if WEIGHT:
            w = tl.load(class_weight + positions - before, mask=inside, other=0.0)
            here = tl.sum(w).to(tl.float64)
            shifted = tl.sum(tl.where(inside, w * (z - shift), 0.0)).to(tl.float64)
        else:
            here = tl.sum(inside.to(tl.float32)).to(tl.float64)
            shifted = tl.sum(tl.where(inside, z - shift, 0.0)).to(tl.float64)
        total += shifted + here * shift.to(tl.float64)
        weights += here
    earlier += tl.sum((inside & (positions - before < y) & (z == z_y)).to(tl.int32))
    return higher, exp_sum, total, weights, earlier


@triton.jit
def _is_first_nan(x, before, end, y, z_y, otherwise, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Whether z_y is the first nan of its row: argmax takes nan for the largest number."""
    nans = tl.full((), 0, tl.int32)
    earlier = tl.full((), 0, tl.int32)
    for begin in range(0, end, BLOCK):
        positions = begin + tl.arange(0, BLOCK)
        values = _load(x, positions, before, end, "", GROUP)
        is_nan = values != values
        nans += tl.sum(is_nan.to(tl.int32))
        earlier += tl.sum((is_nan & (positions - before < y)).to(tl.int32))
    return tl.where(nans > 0, (z_y != z_y) & (earlier == 0), otherwise)


@triton.jit
def _row_gradient(
    g, y, z_y, valid, best, exp_sum, class_weight, weight_total, nll_weight, smooth_weight, z_loss, soft_cap, cols, CAP, WEIGHT
):
    """The factors of a row's gradient, and the target's: in double, since p_y - 1 is a small difference of large numbers."""
    w_y = tl.full((), 1.0, tl.float64)
    w = cols.to(tl.float64)
    if WEIGHT:
        w_y = tl.load(class_weight + y, mask=valid, other=0.0).to(tl.float64)
        w = tl.load(weight_total)
    wide = g.to(tl.float64)
    mass = nll_weight * w_y + smooth_weight * w
    if z_loss != 0.0:
        mass += 2.0 * z_loss * (tl.log(exp_sum) + best.to(tl.float64))
    probability = tl.exp(z_y.to(tl.float64) - best.to(tl.float64)) / exp_sum
    of_target = wide * (probability * mass - (nll_weight + smooth_weight) * w_y)
    if CAP:
        t = z_y.to(tl.float64) / soft_cap
        of_target *= 1.0 - t * t
    scale = tl.where(valid, (wide * mass / exp_sum).to(tl.float32), float("nan"))
    offset = tl.where(smooth_weight == 0.0, 0.0, (wide * smooth_weight).to(tl.float32))
    return scale, offset, of_target.to(tl.float32)


@triton.jit
def _row_loss(
    y, z_y, valid, best, exp_sum, total, class_weight, weight_total, nll_weight, smooth_weight, z_loss, cols, WEIGHT, SMOOTH
):
    """Loss and nll of a row. A weight of 0 drops its term, even an infinite one."""
    log_sum = tl.log(exp_sum)
    lse = log_sum + best.to(tl.float64)
    nll = log_sum - (z_y.to(tl.float64) - best.to(tl.float64))
    of_target = tl.full((), 1.0, tl.float64) * nll_weight
    w = cols.to(tl.float64)
    if WEIGHT:
        of_target *= tl.load(class_weight + y, mask=valid, other=0.0).to(tl.float64)
        w = tl.load(weight_total)
    loss = tl.where(of_target == 0.0, 0.0, of_target * nll)
    if SMOOTH:
        loss += smooth_weight * (w * lse - total)
    if z_loss != 0.0:
        loss += z_loss * lse * lse
    return tl.where(valid, loss.to(tl.float32), float("nan")), nll.to(tl.float32)


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
            _write_zeros(out, before, end, 0, end, BLOCK, GROUP)
    else:
        # The target's logit is read first: the gradient may be written over it.
        valid = (y >= 0) & (y < cols)
        x_y = tl.load(x + before + y, mask=valid, other=float("nan")).to(tl.float32)
        z_y = _capped(x_y, valid, soft_cap, CAP)
        z_y = tl.where(valid, z_y, float("nan"))
        best = tl.full((), float("-inf"), tl.float32)
        exp_sum = tl.full((), 0.0, tl.float64)
        total = tl.full((), 0.0, tl.float64)
        weights = tl.full((), 0.0, tl.float64)
        earlier = tl.full((), 0, tl.int32)
        if WHOLE:
            positions = tl.arange(0, BLOCK)
            values = _load(x, positions, before, end, "evict_first", GROUP)
            best, exp_sum, total, weights, earlier = _add(
                values, positions, before, end, y, z_y, class_weight, soft_cap,
                best, exp_sum, total, weights, earlier, CAP, WEIGHT, SMOOTH,
            )  # fmt: skip
        else:
            for begin in range(0, end, BLOCK):
                positions = begin + tl.arange(0, BLOCK)
                values = _load(x, positions, before, end, "evict_last", GROUP)
                best, exp_sum, total, weights, earlier = _add(
                    values, positions, before, end, y, z_y, class_weight, soft_cap,
                    best, exp_sum, total, weights, earlier, CAP, WEIGHT, SMOOTH,
                )  # fmt: skip
        is_first = (z_y == best) & (earlier == 0)
        if exp_sum != exp_sum:
            is_first = _is_first_nan(x, before, end, y, z_y, is_first, BLOCK, GROUP)
        if GRADIENT:
            g = uniform_grad_loss
            if BY_ROW:
                g = tl.load(grad_loss + row * grad_loss_stride)
            scale, offset, of_target = _row_gradient(
                g, y, z_y, valid, best, exp_sum, class_weight, weight_total,
                nll_weight, smooth_weight, z_loss, soft_cap, cols, CAP, WEIGHT,
            )  # fmt: skip
            tl.debug_barrier()  # every thread has read the target's logit and looked for nan
            if GROUP > 1:
                _write_edges(
                    x, out, before, end, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT, GROUP
                )
            if WHOLE:
                positions = tl.arange(0, BLOCK)
                inside = (positions >= before) & (positions < end)
                result = _gradient_at(
                    values, inside, positions - before, y, class_weight, soft_cap,
                    best, scale, offset, of_target, CAP, WEIGHT,
                )  # fmt: skip
                _store(out, result, positions, before, end, GROUP)
            else:
                for begin in range(0, end, BLOCK):
                    positions = begin + tl.arange(0, BLOCK)
                    inside = (positions >= before) & (positions < end)
                    values = _load(x, positions, before, end, "evict_first", GROUP)
                    result = _gradient_at(
                        values, inside, positions - before, y, class_weight, soft_cap,
                        best, scale, offset, of_target, CAP, WEIGHT,
                    )  # fmt: skip
                    _store(out, result, positions, before, end, GROUP)
        row_loss, row_nll = _row_loss(
            y, z_y, valid, best, exp_sum, total, class_weight, weight_total,
            nll_weight, smooth_weight, z_loss, cols, WEIGHT, SMOOTH,
        )  # fmt: skip
        tl.store(loss + row, row_loss)
        tl.store(nll + row, row_nll)
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
        _write_zeros(out, before, end, begin, begin + BLOCK, BLOCK, GROUP)
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
        z_y = _capped(x_y, valid, soft_cap, CAP)
        g = tl.load(grad_loss + row * grad_loss_stride)
        scale, offset, of_target = _row_gradient(
            g, y, z_y, valid, best, exp_sum, class_weight, weight_total,
            nll_weight, smooth_weight, z_loss, soft_cap, cols, CAP, WEIGHT,
        )  # fmt: skip
        positions = begin + tl.arange(0, BLOCK)
        inside = (positions >= before) & (positions < end)
        values = _load(x, positions, before, end, "evict_first", GROUP)
        result = _gradient_at(
            values, inside, positions - before, y, class_weight, soft_cap,
            best, scale, offset, of_target, CAP, WEIGHT,
        )  # fmt: skip
        tl.debug_barrier()  # every thread has read the target's logit
        _store(out, result, positions, before, end, GROUP)
        if GROUP > 1:
            if begin == 0:
                _write_edges(
                    x, out, before, end, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT, GROUP
                )


@triton.jit(do_not_specialize=["cols", "grad_stride", "ignore_index"])
def _scale_kernel(
    grad, factor, target, cols, grad_stride, ignore_index, BLOCK: tl.constexpr, GROUP: tl.constexpr
):
    by = tl.load(factor)
    row = tl.program_id(0).to(tl.int64)
    if by != 1.0:
        if tl.load(target + row) != ignore_index:
            start = row * grad_stride
            before = (start % GROUP).to(tl.int32)
            end = before + cols
            out = grad + start // GROUP * GROUP
            begin = tl.program_id(1) * BLOCK
            positions = begin + tl.arange(0, BLOCK)
            _store(out, _load(out, positions, before, end, "evict_first", GROUP) * by, positions, before, end, GROUP)
            if GROUP > 1:
                if begin == 0:
                    positions, inside = _edges(before, end, GROUP)
                    values = tl.load(out + positions, mask=inside, other=0.0).to(tl.float32)
                    tl.store(out + positions, (values * by).to(grad.dtype.element_ty), mask=inside)


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
    """Fill loss, nll, correct [N] and stats [N, 2] for logits [N, V], target [N]; and ``grad`` [N, V], unless it is None,
    with the gradient of ``(grad_loss * loss).sum()``. A target out of range gives nan.
    """
    count, cols = logits.shape
    if count == 0:
        return
    group = group_of(logits) if grad is None else group_of(logits, grad)
    block, num_warps, whole = launch(cols + group - 1, logits.element_size())
    losses, nll, correct, stats = results
    by_row = isinstance(grad_loss, Tensor)
    with _device_of(logits):
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
    with _device_of(logits):
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
    with _device_of(grad):
        _scale_kernel[(count, triton.cdiv(span, block))](
            grad, factor, target, cols, grad.stride(0), ignore_index, BLOCK=block, GROUP=group, num_warps=num_warps
        )


def _stride(grad_loss: Tensor) -> int:
    return grad_loss.stride(0) if grad_loss.dim() else 0


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels are launched on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
