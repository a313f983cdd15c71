"""What the kernels of cross_entropy.py are made of: a row of logits in memory, and the rule for its elements.

A row may begin at any element, and the compiler makes 16-byte accesses only where it can prove that they are aligned
and whole. So rows are taken in groups of 16 bytes from the aligned address before their first element: loads take whole
groups and forget what is not of the row; stores write the groups that are all of the row, and the elements at both ends
apart from them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(u):
    """Within two units of the last place. Near 0, where 1 - exp(-2u) cancels, by a polynomial fitted to it."""
    s = u * u
    p = ((-0.00627639 * s + 0.02111621) * s - 0.05387514) * s + 0.13332924
    near = u + u * (s * (p * s - 0.3333333))
    e = tl.exp(-2.0 * tl.abs(u))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(u) < 0.6, near, tl.where(u < 0.0, -far, far))


@triton.jit
def load_row(x, positions, before, end, POLICY: tl.constexpr, GROUP: tl.constexpr):
    """Elements of a row from the groups that it touches, -inf where they are not of the row."""
    touched = positions // GROUP * GROUP < end
    values = tl.load(x + positions, mask=touched, other=float("-inf"), eviction_policy=POLICY).to(tl.float32)
    return tl.where((positions >= before) & (positions < end), values, float("-inf"))


@triton.jit
def capped(values, inside, soft_cap, CAP: tl.constexpr):
    if CAP:
        values = tl.where(inside, soft_cap * tanh(values / soft_cap), float("-inf"))
    return values


@triton.jit
def gradient_at(values, inside, classes, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT):
    """The gradient at some elements of a row; ``of_target`` is the target's, which is known better."""
    z = capped(values, inside, soft_cap, CAP)
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
def store_whole_groups(out, result, positions, before, end, GROUP: tl.constexpr):
    """Stores the groups that are all of the row."""
    group = positions // GROUP * GROUP
    inner = (group >= before) & (group + GROUP <= end)
    tl.store(out + positions, result.to(out.dtype.element_ty), mask=inner)


@triton.jit
def edges(before, end, GROUP: tl.constexpr):
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
def write_edges(
    x, out, before, end, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT, GROUP: tl.constexpr
):
    # Nothing has been written over these logits, if that is where the gradient goes: _store left them out.
    positions, inside = edges(before, end, GROUP)
    values = tl.load(x + positions, mask=inside, other=float("-inf")).to(tl.float32)
    result = gradient_at(
        values, inside, positions - before, y, class_weight, soft_cap, best, scale, offset, of_target, CAP, WEIGHT
    )
    tl.store(out + positions, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def write_zeros(out, before, end, begin, stop, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    for at in range(begin, stop, BLOCK):
        store_whole_groups(out, tl.zeros((BLOCK,), tl.float32), at + tl.arange(0, BLOCK), before, end, GROUP)
    if GROUP > 1:  # noqa: SIM102  (known when it is compiled)
        if begin == 0:
            positions, inside = edges(before, end, GROUP)
            zeros = tl.zeros((2 * GROUP,), tl.float32)
            tl.store(out + positions, zeros.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_block(
    values, positions, before, end, y, z_y, class_weight, soft_cap,
    best, exp_sum, total, earlier, CAP, WEIGHT, SMOOTH,
):  # fmt: skip
    """With a block more: maximum, sums of exp(z - best) and of w z, elements before the target that equal it."""
    inside = (positions >= before) & (positions < end)
    z = capped(values, inside, soft_cap, CAP)
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
    earlier += tl.sum((inside & (positions - before < y) & (z == z_y)).to(tl.int32))
    return higher, exp_sum, total, earlier


@triton.jit
def is_first_nan(x, before, end, y, z_y, otherwise, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Whether z_y is the first nan of its row: argmax takes nan for the largest number."""
    nans = tl.full((), 0, tl.int32)
    earlier = tl.full((), 0, tl.int32)
    for begin in range(0, end, BLOCK):
        positions = begin + tl.arange(0, BLOCK)
        values = load_row(x, positions, before, end, "", GROUP)
        is_nan = values != values
        nans += tl.sum(is_nan.to(tl.int32))
        earlier += tl.sum((is_nan & (positions - before < y)).to(tl.int32))
    return tl.where(nans > 0, (z_y != z_y) & (earlier == 0), otherwise)


@triton.jit
def row_gradient(
    g, y, z_y, valid, best, exp_sum, class_weight, weight_total,
    nll_weight, smooth_weight, z_loss, soft_cap, cols, CAP, WEIGHT,
):  # fmt: skip
    """The factors of a row's gradient, and the target's: in double, p_y - 1 is a small difference of large numbers."""
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
def row_loss(
    y, z_y, valid, best, exp_sum, total, class_weight, weight_total,
    nll_weight, smooth_weight, z_loss, cols, WEIGHT, SMOOTH,
):  # fmt: skip
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
