"""linear_cross_entropy in eager autograd: straight to the loop, without the dispatcher of torch.library."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyseq.ops.cross_entropy import Kernel, Options
from pyseq.ops.cross_entropy.definition import total
from pyseq.ops.linear_cross_entropy.run import NONE, Gradients, Problem, Wanted, run


class Call(NamedTuple):
    """Checked arguments."""

    input: Tensor  # [N x D]
    weight: Tensor  # [V x D]
    bias: Tensor | None  # [V]
    target: Tensor  # [N] int64
    scale: Tensor | None  # 0-d fp32: what a sum of losses is multiplied by; None for 1
    options: Options
    ignore_index: int
    chunk_rows: int
    dtype: torch.dtype  # of the products

    def problem(self) -> Problem:
        weight = self.weight.detach().to(self.dtype)
        bias = None if self.bias is None else self.bias.detach().to(self.dtype)
        features = self.input.detach().to(self.dtype)
        return Problem(features, weight, bias, self.target, self.options, self.ignore_index, self.chunk_rows)

    def row_weight(self) -> Tensor | float:
        """What the gradients of a sum are computed with; they are ``gain`` times too large."""
        return self.gain() if self.scale is None else self.scale * self.gain()

    def gain(self) -> float:
        """A power of two. The probability of a rare class is 0 in fp16 long before a loss scale could save it."""
        return 1024.0 if self.dtype == torch.float16 else 1.0


Results = tuple[Tensor, Tensor, Tensor, Tensor]  # loss, nll, correct, z-loss


def summed(rows: Results, scale: Tensor | None) -> Results:
    """Sums of the results of rows, the first times ``scale``."""
    loss, nll, correct, z_loss = rows
    weighted = total(loss) if scale is None else total(loss) * scale
    return weighted, total(nll), correct.sum(), total(z_loss)


class LinearCrossEntropy(torch.autograd.Function):
    """Gradients of a sum are computed in the forward pass and used up by the first backward pass.

    A second backward pass, and any of losses that were not summed, computes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        reduce: bool,
        wanted: Wanted,
        kernel: type[Kernel],
    ) -> Results:
        rows, gradients = run(call.problem(), kernel, call.row_weight(), wanted if reduce else NONE)
        results = rows.loss, rows.nll, rows.correct, rows.z_loss(call.options)
        ctx.save_for_backward(input, weight, bias, call.target)
        ctx.rest = call[4:]
        ctx.how = wanted, kernel
        ctx.ready = gradients if reduce else None
        results = summed(results, call.scale) if reduce else results
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        ready, ctx.ready = ctx.ready, None
        grads = _Gradients.apply(grad_loss, *tensors[:3], Call(*tensors, *ctx.rest), *ctx.how, ready)
        return *grads, None, None, None, None


class _Gradients(torch.autograd.Function):
    """A node of its own, so that a second derivative is an error and not a zero."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_loss: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        wanted: Wanted,
        kernel: type[Kernel],
        ready: Gradients | None,
    ) -> tuple[Tensor | None, ...]:
        if grad_loss.dim() > 0:
            _, grads = run(call.problem(), kernel, grad_loss, wanted)
            return in_dtypes_of((input, weight, bias), grads)
        if ready is None:
            _, ready = run(call.problem(), kernel, call.row_weight(), wanted)
        factor = grad_loss / call.gain()
        if factor.device.type != "cpu" or factor.item() != 1.0:
            for grad in ready:
                if grad is not None:
                    grad.mul_(factor)
        return in_dtypes_of((input, weight, bias), ready)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return second_derivative(ctx, *grads)


def in_dtypes_of(tensors: tuple[Tensor | None, ...], grads: Gradients) -> tuple[Tensor | None, ...]:
    pairs = zip(tensors, grads, strict=True)
    return tuple(None if grad is None or tensor is None else grad.to(tensor.dtype) for tensor, grad in pairs)


def second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "pyseq.ops.linear_cross_entropy can be differentiated once only; for second derivatives call it inside "
        'pyseq.ops.backend("torch")'
    )
