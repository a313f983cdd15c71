"""The linear cross-entropy by chunks of rows: logits are made, turned into their gradient in place, and used up.

For a chunk h [R x D] of the input and the weight W [V x D]::

    z  = h W^T + b             [R x V], in one buffer for all chunks
    g  = dloss/dz              in the place of z
    dh = g W,  dW += g^T h,  db += sum_r g_r

The sums over chunks are fp32 or better, whatever the dtype of the products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyseq.ops.cross_entropy import Kernel, Smoothing


class Problem(NamedTuple):
    """A linear cross-entropy in the dtype of its products. Ignored rows may hold anything."""

    input: Tensor  # [N x D]
    weight: Tensor  # [V x D]
    bias: Tensor | None  # [V]
    target: Tensor  # [N] int64
    smoothing: Smoothing
    ignore_index: int
    chunk_rows: int


class Wanted(NamedTuple):
    """Which gradients to compute."""

    input: bool = False
    weight: bool = False
    bias: bool = False


class Result(NamedTuple):
    """What is known of each row, and the gradients that were wanted, of the sum of ``row_weight * loss``."""

    loss: Tensor  # [N] fp32
    nll: Tensor  # [N] fp32
    correct: Tensor  # [N] bool
    grad_input: Tensor | None  # [N x D]
    grad_weight: Tensor | None  # [V x D] fp32 or better
    grad_bias: Tensor | None  # [V] fp32 or better


def run(problem: Problem, kernel: type[Kernel], row_weight: Tensor | None = None, wanted: Wanted = Wanted()) -> Result:  # noqa: B008
    """Losses, and gradients where any is ``wanted``.

    Args:
        problem: its target holds classes and ``ignore_index`` alone, where it is on the CPU.
        kernel: the row kernel of the cross-entropy.
        row_weight: [N] or 0-d, fp32: what the loss of each row is multiplied by for the gradients. Default 1.
        wanted: which gradients.
    """
    ignored = problem.target == problem.ignore_index
    if problem.target.device.type != "cpu":
        # To know how many rows count would be to wait for the device. Zeros by selection: 0 times inf is nan.
        return _run(problem._replace(input=problem.input.masked_fill(ignored.unsqueeze(1), 0)), kernel, row_weight, wanted)
    if not ignored.any():
        return _run(problem, kernel, row_weight, wanted)
    kept = (~ignored).nonzero().squeeze(1)
    if row_weight is not None and row_weight.dim() > 0:
        row_weight = row_weight[kept]
    packed = problem._replace(input=problem.input[kept], target=problem.target[kept])
    result = _run(packed, kernel, row_weight, wanted)
    rows = len(ignored)
    return result._replace(
        loss=_spread(result.loss, kept, rows),
        nll=_spread(result.nll, kept, rows),
        correct=_spread(result.correct, kept, rows),
        grad_input=None if result.grad_input is None else _spread(result.grad_input, kept, rows),
    )


def _spread(packed: Tensor, kept: Tensor, rows: int) -> Tensor:
    return packed.new_zeros(rows, *packed.shape[1:]).index_copy_(0, kept, packed)


def _run(problem: Problem, kernel: type[Kernel], row_weight: Tensor | None, wanted: Wanted) -> Result:
    rows, classes = len(problem.target), len(problem.weight)
    device, sums = problem.input.device, torch.promote_types(problem.input.dtype, torch.float32)
    loss, nll = (torch.empty(rows, dtype=sums, device=device) for _ in range(2))
    correct = torch.empty(rows, dtype=torch.bool, device=device)
    grad_input = torch.empty_like(problem.input) if wanted.input else None
    grad_weight = torch.zeros(problem.weight.shape, dtype=sums, device=device) if wanted.weight else None
    grad_bias = torch.zeros(classes, dtype=sums, device=device) if wanted.bias else None
    weights = (torch.ones((), dtype=sums, device=device) if row_weight is None else row_weight.to(sums)).expand(rows)
    buffer = problem.input.new_empty(min(problem.chunk_rows, rows), classes)
    for begin in range(0, rows, problem.chunk_rows):
        part = slice(begin, min(begin + problem.chunk_rows, rows))
        chunk, target = problem.input[part], problem.target[part]
        logits = buffer[: len(chunk)]
        if problem.bias is None:
            torch.mm(chunk, problem.weight.t(), out=logits)
        else:
            torch.addmm(problem.bias, chunk, problem.weight.t(), out=logits)
        loss[part], nll[part], correct[part], stats = kernel.forward(
            logits, target, problem.smoothing, problem.ignore_index
        )
        if not any(wanted):
            continue
        gradient = kernel.backward(weights[part], logits, target, stats, problem.smoothing, problem.ignore_index)
        if grad_input is not None:
            torch.mm(gradient, problem.weight, out=grad_input[part])
        if grad_weight is not None:
            _add_product(grad_weight, gradient, chunk)
        if grad_bias is not None:
            grad_bias += gradient.sum(dim=0, dtype=sums)
    return Result(loss, nll, correct, grad_input, grad_weight, grad_bias)


def _add_product(total: Tensor, gradient: Tensor, chunk: Tensor) -> None:
    """Add gradient^T [V x R] times chunk [R x D] to ``total`` [V x D]."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), chunk)
    else:
        total.add_(gradient.t() @ chunk)
