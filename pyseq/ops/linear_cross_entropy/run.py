"""The linear cross-entropy by chunks of rows: logits are made, turned into their gradient in place, and used up.

For a chunk h [R x D] of the input and the weight W [V x D]::

    z  = h W^T + b             [R x V]
    g  = dloss/dz              in the place of z
    dh = g W,  dW += g^T h,  db += sum_r g_r

The sums over chunks are fp32 or better, whatever the dtype of the products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyseq.ops.cross_entropy import Kernel, Options, RowResults
from pyseq.ops.cross_entropy.definition import out_of_range
from pyseq.ops.linear_cross_entropy import products


class Problem(NamedTuple):
    """A linear cross-entropy in the dtype of its products. Ignored rows may hold anything."""

    input: Tensor  # [N x D]
    weight: Tensor  # [V x D]
    bias: Tensor | None  # [V]
    target: Tensor  # [N] int64
    options: Options
    ignore_index: int
    chunk_rows: int


class Wanted(NamedTuple):
    """Which gradients to compute."""

    input: bool = False
    weight: bool = False
    bias: bool = False


NONE = Wanted()


class Gradients(NamedTuple):
    """Those that were wanted, of the sum of ``row_weight * loss``."""

    input: Tensor | None = None  # [N x D], of the dtype of the products
    weight: Tensor | None = None  # [V x D] fp32 or better
    bias: Tensor | None = None  # [V] fp32 or better


def run(
    problem: Problem, kernel: type[Kernel], row_weight: Tensor | float = 1.0, wanted: Wanted = NONE
) -> tuple[RowResults, Gradients]:
    """The results of N rows, and the gradients that are ``wanted``.

    Args:
        row_weight: [N] or 0-d, fp32, or a number: what the loss of each row is multiplied by for the gradients.

    Raises:
        TargetOutOfRangeError: on the CPU.
    """
    ignored = problem.target == problem.ignore_index
    if problem.target.device.type != "cpu":
        # To know how many rows count would be to wait for the device. Zeros by selection: 0 times inf is nan.
        shown = problem.input.masked_fill(ignored.unsqueeze(1), 0)
        return _run(problem._replace(input=shown), kernel, row_weight, wanted)
    _check_range(problem, ignored)
    if not ignored.any():
        return _run(problem, kernel, row_weight, wanted)
    kept = (~ignored).nonzero().squeeze(1)
    if isinstance(row_weight, Tensor) and row_weight.dim() > 0:
        row_weight = row_weight[kept]
    packed = problem._replace(input=problem.input[kept], target=problem.target[kept])
    rows, gradients = _run(packed, kernel, row_weight, wanted)
    if gradients.input is not None:
        gradients = gradients._replace(input=_spread(gradients.input, kept, ignored))
    results = RowResults(*(_spread(part, kept, ignored) for part in rows))
    results.stats[ignored] = results.stats.new_tensor([0.0, 1.0])
    return results, gradients


def _check_range(problem: Problem, ignored: Tensor) -> None:
    target, classes = problem.target, len(problem.weight)
    bad = ((target < 0) | (target >= classes)) & ~ignored
    if bad.any():
        raise out_of_range(target, int(bad.nonzero()[0]), classes, problem.ignore_index)


def _spread(packed: Tensor, kept: Tensor, like: Tensor) -> Tensor:
    """``packed`` in the rows ``kept`` of a tensor as long as ``like``, zeros elsewhere."""
    return packed.new_zeros(len(like), *packed.shape[1:]).index_copy_(0, kept, packed)


def _run(
    problem: Problem, kernel: type[Kernel], row_weight: Tensor | float, wanted: Wanted
) -> tuple[RowResults, Gradients]:
    features, weight, bias, target, options, ignore_index, chunk_rows = problem
    gradients = _allocate(problem, wanted)
    buffer = features.new_empty(min(chunk_rows, len(target)), len(weight))
    results = []
    for begin in range(0, len(target), chunk_rows):
        part = slice(begin, begin + chunk_rows)
        chunk, classes = features[part], target[part]
        logits = products.logits(chunk, weight, bias, buffer)
        if not any(wanted):
            results.append(kernel.forward(logits, classes, options, ignore_index))
            continue
        of_rows = row_weight[part] if isinstance(row_weight, Tensor) and row_weight.dim() > 0 else row_weight
        results.append(kernel.loss_and_gradient(logits, classes, options, ignore_index, of_rows, logits))
        if gradients.input is not None:
            products.input_gradient(logits, weight, gradients.input[part])
        if gradients.weight is not None:
            products.add_weight_gradient(gradients.weight, logits, chunk, first=begin == 0)
        if gradients.bias is not None:
            gradients.bias.add_(logits.sum(dim=0, dtype=gradients.bias.dtype))
    return _joined(results, kernel, problem), gradients


def _allocate(problem: Problem, wanted: Wanted) -> Gradients:
    features, weight = problem.input, problem.weight
    sums = torch.promote_types(features.dtype, torch.float32)
    start = torch.empty if len(problem.target) else torch.zeros  # the first chunk does not add, it sets
    return Gradients(
        torch.empty_like(features, memory_format=torch.contiguous_format) if wanted.input else None,
        start(weight.shape, dtype=sums, device=weight.device) if wanted.weight else None,
        torch.zeros(len(weight), dtype=sums, device=weight.device) if wanted.bias else None,
    )


def _joined(results: list[RowResults], kernel: type[Kernel], problem: Problem) -> RowResults:
    if not results:
        empty = problem.input.new_empty(0, len(problem.weight))
        return kernel.forward(empty, problem.target, problem.options, problem.ignore_index)
    return results[0] if len(results) == 1 else RowResults(*(torch.cat(parts) for parts in zip(*results, strict=True)))
