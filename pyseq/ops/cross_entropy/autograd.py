"""cross_entropy in eager autograd: straight to the kernel, without the dispatcher of torch.library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyseq.ops.cross_entropy.definition import Options
from pyseq.ops.cross_entropy.kernels import Kernel, RowResults


class Rows(torch.autograd.Function):
    """The rows of [N, V] logits; the logits are read again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, options: Options, ignore_index: int, kernel: type[Kernel]
    ) -> RowResults:
        out = kernel.forward(logits, target, options, ignore_index)
        ctx.save_for_backward(logits, target, out.stats)
        ctx.options = options, ignore_index, kernel
        ctx.mark_non_differentiable(*out[1:])
        return out

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor, None, None, None, None]:
        return _RowsGradient.apply(grad_loss, *ctx.saved_tensors, *ctx.options), None, None, None, None


class _RowsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad_loss: Tensor, logits: Tensor, target: Tensor, stats: Tensor, *options: Any) -> Tensor:
        options, ignore_index, kernel = options
        return kernel.backward(grad_loss, logits, target, stats, options, ignore_index)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return second_derivative(ctx, *grads)


def second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "pyseq.ops.cross_entropy can be differentiated once only; for second derivatives call it inside "
        'pyseq.ops.backend("torch")'
    )
